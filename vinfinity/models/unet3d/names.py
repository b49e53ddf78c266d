"""Tensor names of older and newer files, and the parameters of ours that they fill."""

# The autoencoder's attention in files written before diffusers 0.15.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def vae_name(name: str) -> str:
    """The parameter that a tensor in an autoencoder's file fills."""
    *parents, layer, kind = name.split(".")
    if "attentions" in parents and layer in OLD_ATTENTION:
        return ".".join([*parents, OLD_ATTENTION[layer], kind])
    return name


def text_name(name: str) -> str | None:
    """The parameter that a tensor in a text encoder's file fills; None for a buffer that only older files have.

    Newer versions of transformers omit the leading "text_model".
    """
    if name.endswith("embeddings.position_ids"):
        return None
    return name if name.startswith("text_model.") else f"text_model.{name}"
