"""Tensor names of older and newer files, and the parameters of ours that they fill."""

from collections.abc import Collection

# The autoencoder's attention in files written before diffusers 0.15.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def vae_name(name: str) -> str:
    """The parameter that a tensor in an autoencoder's file fills."""
    *parents, layer, kind = name.split(".")
    if "attentions" in parents and layer in OLD_ATTENTION:
        return ".".join([*parents, OLD_ATTENTION[layer], kind])
    return name


def unet_entries(tensors: Collection[str]) -> dict[str, object]:
    """Entries of a UNet's config.json that its tensors imply.

    The classes of VideoCrafter2's conversions take the frame rate by default, so that their files need not say it.
    """
    return {"fps_cond": True} if "fps_embedding.linear_1.weight" in tensors else {}


def text_name(name: str) -> str | None:
    """The parameter that a tensor in a text encoder's file fills; None for a buffer that only older files have.

    Newer versions of transformers omit the leading "text_model".
    """
    if name.endswith("embeddings.position_ids"):
        return None
    return name if name.startswith("text_model.") else f"text_model.{name}"


# The text encoder's attention in LoRA files of diffusers before 0.17.
OLD_TEXT_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def text_module_aliases(modules: Collection[str]) -> dict[str, str]:
    """Further names of a text encoder's modules in LoRA files: without the leading "text_model", and with the
    attention's layers named as in the UNet.
    """
    aliases = {}
    for module in modules:
        parent, _, layer = module.rpartition(".")
        own = {module, f"{parent}.{OLD_TEXT_ATTENTION[layer]}" if layer in OLD_TEXT_ATTENTION else module}
        aliases.update(dict.fromkeys(own | {name.removeprefix("text_model.") for name in own}, module))
    return aliases
