"""How GPUs compute fp32 products: exactly, or faster as TF32 on tensor cores, with ten bits of mantissa."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def fp32_products(*, tf32: bool) -> Iterator[None]:
    """Choose, until the block ends, whether products and convolutions of fp32 tensors on GPUs use TF32.

    The denoiser and the text encoder in fp32 are exact: users who ask for fp32 want its digits, and torch's default,
    TF32 in convolutions alone, is neither exact nor fast. Decoding uses TF32: its pictures have 8 bits. Settings made
    with torch's newer API (`fp32_precision`) are the user's own and stay as they are.
    """
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        before = matmul.allow_tf32, convolution.allow_tf32
    except RuntimeError:
        # torch does not report the settings of one API through the other
        yield
        return
    matmul.allow_tf32 = convolution.allow_tf32 = tf32
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
