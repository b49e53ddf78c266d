"""Names in the authors' files and in LoRA files, and the modules of ours that they stand for."""

from collections.abc import Collection

# Wan's own names for the modules outside the blocks, as in `Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors`
MODULES_OUTSIDE_BLOCKS = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
    "patch_embedding": "patch_embedding",
}
# and for those inside a block; the authors' norm3 is the norm of cross-attention
MODULES_IN_BLOCK = {
    **{
        f"{ours}.{layer}": f"{theirs}.{own}"
        for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for layer, own in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
    },
    **{
        f"{ours}.{norm}": f"{theirs}.{norm}"
        for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for norm in ("norm_q", "norm_k")
    },
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
TABLE, MODULATION = "scale_shift_table", "modulation"
# the authors' name for the module with the last table, which is our network itself
HEAD = "head"


def original_module(module: str) -> str:
    """Return the authors' name for one of our modules. Raises KeyError for a name that we do not have."""
    if module in MODULES_OUTSIDE_BLOCKS:
        return MODULES_OUTSIDE_BLOCKS[module]
    blocks, number, inside = module.split(".", 2)
    return f"{blocks}.{number}.{MODULES_IN_BLOCK[inside]}"


def original_parameter(parameter: str) -> str:
    """Return the authors' name for one of our parameters."""
    module, _, kind = parameter.rpartition(".")
    if kind == TABLE:
        return f"{module or HEAD}.{MODULATION}"
    return f"{original_module(module)}.{kind}"


def module_aliases(modules: Collection[str]) -> dict[str, str]:
    """Map the authors' names, which LoRA files use, to our modules. modules: all parents of parameters."""
    aliases = {HEAD: ""}
    for module in modules:
        try:
            aliases[original_module(module)] = module
        except (KeyError, ValueError):
            # the parents of tables: these have the same names, except for the last one
            continue
    return aliases
