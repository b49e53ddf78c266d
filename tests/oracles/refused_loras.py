"""LoRA files that cannot be merged, and what the error line says of each. PEFT makes those of kinds that it has."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from oracles.lora_files import (
    PLAIN,
    RESNETS,
    TEXT,
    State,
    adapted,
    base_states,
    by_hand,
    factors,
    lora_layer,
    save,
    trained,
)
from oracles.reference import tiny_pipeline, tiny_unet
from peft import (
    AdaLoraConfig,
    BOFTConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    KasaConfig,
    LoraConfig,
    OFTConfig,
    VeraConfig,
)
from safetensors.torch import load_file

Refused = Callable[[Path], str]


def saved_by_peft(config: Any, *, settings: bool = True, text: bool = False) -> Refused:
    """Write the folder of an adapter that PEFT has and these models lack. settings: whether to write its config."""

    def write(folder: Path) -> str:
        pipeline = tiny_pipeline()
        model = adapted(pipeline.text_encoder if text else pipeline.unet, config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(folder)
        if not settings:
            (folder / "adapter_config.json").unlink()
        return str(folder / "adapter_model.safetensors")

    return write


def with_settings(**settings: Any) -> Refused:
    """Return a LoRA of PEFT whose settings say more than its tensors."""

    def write(folder: Path) -> str:
        path = Path(PLAIN(folder).text)
        config = path.with_name("adapter_config.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | settings))
        return str(path)

    return write


def with_tensors(change: Callable[[State], object], **files: Any) -> Refused:
    """kohya's file with tensors added, changed or removed."""

    def write(folder: Path) -> str:
        state = load_file(by_hand(lora_layer(), text=TEXT)(folder).text)
        change(state)
        return save(folder, state, **files)

    return write


def of_names(*names: str, **files: Any) -> Refused:
    """Return a file whose tensors have these names."""

    def write(folder: Path) -> str:
        return save(folder, {name: torch.ones(4, 4) for name in names}, **files)

    return write


def written(content: Callable[[Path], object], name: str) -> Refused:
    """Return a file that `content` writes."""

    def write(folder: Path) -> str:
        content(folder / name)
        return str(folder / name)

    return write


def with_broken_settings(folder: Path) -> str:
    (folder / "adapter_config.json").symlink_to("blob")
    return save(folder, factors(trained(tiny_unet(), ["to_q"])))


class Payload:
    """Anything but a tensor."""


FIRST = "lora_unet_down_blocks_0_attentions_0_proj_in"
SDXL = "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"
FLUX = "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"
WAN = "transformer.blocks.0.attn1.to_q.lora_A.weight"
MOTION = (
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    ".attention_blocks.0.processor.to_q_lora.down.weight"
)

# Files that are refused, and what the line says of them.
REFUSED: dict[str, tuple[Refused, str]] = {
    # adapters of other kinds
    "IA3": (
        saved_by_peft(IA3Config(target_modules=["to_q"], feedforward_modules=[])),
        "adapter_config.json peft_type: IA3 is not one of LORA, LOHA, LOKR",
    ),
    "IA3, without settings": (
        saved_by_peft(IA3Config(target_modules=["to_q"], feedforward_modules=[]), settings=False),
        "holds IA3 (base_model.model",
    ),
    "OFT": (
        saved_by_peft(OFTConfig(target_modules=["to_q"], r=0, oft_block_size=4), settings=False),
        "holds OFT or BOFT (",
    ),
    "BOFT": (
        saved_by_peft(BOFTConfig(target_modules=["to_q"], boft_block_size=4), settings=False),
        "holds OFT or BOFT (",
    ),
    "VeRA": (
        saved_by_peft(VeraConfig(target_modules=["attn1.to_q"], r=2), settings=False),
        "holds VeRA or a relative of it (",
    ),
    "AdaLoRA": (
        saved_by_peft(AdaLoraConfig(target_modules=["to_q"], r=2, total_step=10), settings=False),
        "holds AdaLoRA (",
    ),
    "HRA": (
        saved_by_peft(HRAConfig(target_modules=["to_q"], r=2)),
        "adapter_config.json peft_type: HRA is not one of",
    ),
    "FourierFT": (
        saved_by_peft(FourierFTConfig(target_modules=["to_q"], n_frequency=10), settings=False),
        "holds FourierFT (",
    ),
    "GLoRA": (of_names(f"{FIRST}.a1.weight", f"{FIRST}.b1.weight"), "holds GLoRA ("),
    "KaSA": (
        saved_by_peft(LoraConfig(target_modules=["to_q"], r=2, kasa_config=KasaConfig())),
        "adapter_config.json kasa_config: ",
    ),
    "single trained tokens": (
        saved_by_peft(
            LoraConfig(target_modules=["q_proj"], r=2, trainable_token_indices={"token_embedding": [1, 2]}),
            text=True,
        ),
        "adapter_config.json trainable_token_indices: ",
    ),
    "single trained tokens, without settings": (
        saved_by_peft(
            LoraConfig(target_modules=["q_proj"], r=2, trainable_token_indices={"token_embedding": [1, 2]}),
            settings=False,
            text=True,
        ),
        "holds single trained tokens (trainable_token_indices of PEFT) (",
    ),
    "textual inversion": (
        with_tensors(lambda state: state.update({"bundle_emb.word.string_to_param.*": torch.ones(1, 16)})),
        "holds textual inversion (bundle_emb.word",
    ),
    "Custom Diffusion": (
        of_names(
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_custom_diffusion.weight"
        ),
        "holds Custom Diffusion (",
    ),
    # for other models
    "SDXL's second text encoder": (of_names(SDXL), "holds a second text encoder, as in SDXL (lora_te2_"),
    "FLUX": (of_names(FLUX), "holds FLUX, Stable Diffusion 3 or a relative of them (transformer.single"),
    "a diffusion transformer": (of_names(WAN), "holds a diffusion transformer (transformer.blocks"),
    "AnimateDiff's motion module": (of_names(MOTION), "holds a motion module of AnimateDiff (down_blocks.0"),
    "another width": (
        lambda folder: save(folder, factors(trained(tiny_unet(block_out_channels=(32, 32)), ["to_q"]))),
        "is for another model: ",
    ),
    "more layers": (
        lambda folder: save(folder, factors(trained(tiny_unet(layers_per_block=2), RESNETS))),
        "is for another model: no down_blocks.0.resnets.1.conv1 in this model",
    ),
    "a layer without a bias": (
        with_tensors(
            lambda state: state.update({f"{FIRST.replace('proj_in', 'norm')}.diff_b": torch.ones(3)})
        ),
        "down_blocks.0.attentions.0.norm.bias is 16, the factors 3",
    ),
    # settings that change what the tensors mean
    "PiSSA": (
        with_settings(init_lora_weights="pissa_niter_4"),
        "init_lora_weights: pissa_niter_4 changed the",
    ),
    "OLoRA": (with_settings(init_lora_weights="olora"), "init_lora_weights: olora changed the model's own"),
    "activated LoRA": (with_settings(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens: [1, 2] is"),
    "replicated layers": (with_settings(layer_replication=[[0, 1], [0, 1]]), "layer_replication: [["),
    "a setting of the future": (with_settings(use_xlora=True), "use_xlora: True is not supported"),
    "a rank that is no number": (with_settings(r="eight"), "r: 'eight' is not a number"),
    "DoRA without magnitudes": (
        with_settings(use_dora=True),
        "missing the magnitudes of down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k (use_dora)",
    ),
    # incomplete and damaged files
    "a missing factor": (
        with_tensors(lambda state: state.pop(f"{FIRST}.lora_up.weight")),
        f"missing the other factor of {FIRST.removeprefix('lora_unet_')} ({FIRST}.lora_down.weight)",
    ),
    "a missing core": (
        with_tensors(lambda state: state.update({f"{FIRST}.hada_t1": torch.ones(2, 2, 1, 1)})),
        f"missing the other factor of {FIRST.removeprefix('lora_unet_')} ({FIRST}.hada_t1)",
    ),
    "an alpha without factors": (
        with_tensors(lambda state: state.update({"lora_unet_conv_in.alpha": torch.tensor(1.0)})),
        "unexpected lora_unet_conv_in.alpha",
    ),
    "an alpha that is no number": (
        with_tensors(lambda state: state.update({f"{FIRST}.alpha": torch.tensor(torch.nan)})),
        f"has {FIRST}.alpha, which is not a number",
    ),
    "the same factor twice": (
        with_tensors(
            lambda state: state.update(
                {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": torch.ones(2, 16)}
            )
        ),
        "are the same factor",
    ),
    "factors of rank 0": (
        with_tensors(
            lambda state: state.update(
                {f"{FIRST}.lora_up.weight": torch.ones(16, 0), f"{FIRST}.lora_down.weight": torch.ones(0, 16)}
            )
        ),
        "the factors 16x0 and 0x16",
    ),
    "integer factors": (
        with_tensors(
            lambda state: state.update(
                {f"{FIRST}.lora_up.weight": torch.ones(16, 2, dtype=torch.int8)},
            )
        ),
        f"has factors of an unsupported type: {FIRST}.lora_up.weight is I8; use a LoRA in F64, F32, F16, BF16",
    ),
    "an unknown tensor": (
        with_tensors(lambda state: state.update({f"{FIRST}.lora_wobble": torch.ones(1)})),
        f"is not a LoRA of a known kind: unexpected {FIRST}.lora_wobble",
    ),
    "a whole network": (
        lambda folder: save(folder, base_states()[0]),
        "is not a LoRA of a known kind: it has no factors",
    ),
    "no tensors": (of_names(), "it has no factors"),
    "damaged metadata": (
        of_names(f"{FIRST}.lora_down.weight", metadata={"lora_adapter_metadata": "{"}),
        "lora_adapter_metadata: is not JSON",
    ),
    # pickles
    "numbered layers (cloneofsimo)": (
        of_names("unet:0:up", "unet:0:down"),
        "holds cloneofsimo's lora, which numbers the layers (unet:0:",
    ),
    "a list without names": (
        written(lambda path: torch.save([torch.ones(2, 2)] * 4, path), "unet_lora.pt"),
        "is a list of 4 tensors without names; use a file of named tensors; vinfinity models convert",
    ),
    "a pickle with code": (
        written(lambda path: torch.save({"a": Payload()}, path), "lora.pt"),
        "has more than weights in it: oracles.refused_loras.Payload, which could run code",
    ),
    "a pickle of numbers": (
        written(lambda path: torch.save({"a": 1.0}, path), "lora.bin"),
        "has 'a' of type float, which is not a tensor",
    ),
    "an empty pickle": (written(lambda path: path.touch(), "lora.pt"), "is damaged or not a PyTorch file"),
    # files
    "another format": (
        written(lambda path: path.touch(), "lora.gguf"),
        "does not end in .safetensors, .ckpt",
    ),
    "a truncated file": (
        written(lambda path: path.write_bytes(b"\x08\0\0\0\0\0\0\0{"), "lora.safetensors"),
        "is truncated or not a safetensors file",
    ),
    "nothing": (lambda folder: str(folder / "lora.safetensors"), "does not exist; check the path"),
    "a broken link": (
        written(lambda path: path.symlink_to("blob"), "lora.safetensors"),
        "is a broken link to blob; check the path",
    ),
    "settings that are a broken link": (
        with_broken_settings,
        "adapter_config.json is a broken link to blob",
    ),
    "a folder without a LoRA": (
        lambda folder: str(folder),
        "is a folder without adapter_model.safetensors or pytorch_lora_weights.safetensors; name the file",
    ),
}
