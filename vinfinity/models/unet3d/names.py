"""Tensor names in older and newer files, and the parameters of ours that they fill."""

from collections.abc import Collection

# Names in the autoencoder's attention in files written before diffusers 0.15.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def vae_name(name: str) -> str:
    """Return the parameter that a tensor in an autoencoder's file fills."""
    *parents, layer, kind = name.split(".")
    if "attentions" in parents and layer in OLD_ATTENTION:
        return ".".join([*parents, OLD_ATTENTION[layer], kind])
    return name


def unet_entries(tensors: Collection[str]) -> dict[str, object]:
    """Return the entries of a UNet's config.json that its tensors imply.

    The classes in VideoCrafter2's conversions take the frame rate by default, so their files may omit it.
    """
    return {"fps_cond": True} if "fps_embedding.linear_1.weight" in tensors else {}


def text_name(name: str) -> str | None:
    """Return the parameter that a tensor in a text encoder's file fills; None for a buffer that only older files have.

    Newer versions of transformers omit the leading "text_model".
    """
    if name.endswith("embeddings.position_ids"):
        return None
    return name if name.startswith("text_model.") else f"text_model.{name}"


# Names in the text encoder's attention in LoRA files from diffusers before 0.17.
OLD_TEXT_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def text_module_aliases(modules: Collection[str]) -> dict[str, str]:
    """Map the names that LoRA files may use for a text encoder's modules to ours.

    They omit the leading "text_model", or name the attention's layers as in the UNet.
    """
    aliases = {}
    for module in modules:
        parent, _, layer = module.rpartition(".")
        own = {module, f"{parent}.{OLD_TEXT_ATTENTION[layer]}" if layer in OLD_TEXT_ATTENTION else module}
        aliases.update(dict.fromkeys(own | {name.removeprefix("text_model.") for name in own}, module))
    return aliases
