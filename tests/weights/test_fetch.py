"""Fetching from a local server that speaks the hub's protocol: resumed, verified by hash, then used offline."""

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import disk_usage
from typing import Any

import pytest
import torch
from oracles.networks import load_unet
from oracles.reference import save_model, tiny_pipeline, tiny_unet
from safetensors.torch import load_file, save_file

from vinfinity.errors import OutputError
from vinfinity.models.unet3d.configs import UNetConfig
from vinfinity.models.unet3d.lvdm import UNET as PREFIX
from vinfinity.models.unet3d.lvdm import unet_table
from vinfinity.models.unet3d.turbo import turbo_order
from vinfinity.models.unet3d.unet import UNet
from vinfinity.weights.convert import convert
from vinfinity.weights.hub import check_space, needed
from vinfinity.weights.load import check_weights

REVISION = "0123456789abcdef0123456789abcdef01234567"
UNET = "unet/diffusion_pytorch_model.safetensors"


@dataclass
class Hub:
    """Repositories of files, and the requests for them. broken: how many transfers of large files break halfway.
    wrong: files that are served with contents that do not match their hash. announced: sizes other than the true ones.
    """

    repositories: dict[str, dict[str, bytes]]
    broken: int = 0
    wrong: set[str] = field(default_factory=set)
    announced: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    sent: int = 0
    url: str = ""

    def large(self, name: str) -> bool:
        return name.endswith((".safetensors", ".bin", ".pt"))

    def etag(self, name: str, data: bytes) -> str:
        if self.large(name):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()

    def info(self, repo: str) -> dict[str, Any]:
        siblings = []
        for name, data in self.repositories[repo].items():
            size = self.announced.get(name, len(data))
            entry: dict[str, Any] = {"rfilename": name, "size": size, "blobId": "0" * 40}
            if self.large(name):
                entry["lfs"] = {"sha256": self.etag(name, data), "size": len(data), "pointerSize": 130}
            else:
                entry["blobId"] = self.etag(name, data)
            siblings.append(entry)
        return {
            "id": repo,
            "modelId": repo,
            "sha": REVISION,
            "siblings": siblings,
            "private": False,
            "tags": [],
        }


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            repo = path.removeprefix("/api/models/").partition("/revision/")[0]
            if repo not in self.hub.repositories:
                self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
            else:
                text = json.dumps(self.hub.info(repo)).encode()
                self.reply(200, text, {"Content-Type": "application/json"}, body=body)
            return
        repo, _, rest = path.strip("/").partition("/resolve/")
        name = rest.partition("/")[2]
        data = self.hub.repositories[repo][name]
        headers = {
            "ETag": f'"{self.hub.etag(name, data)}"',
            "X-Repo-Commit": REVISION,
            "Accept-Ranges": "bytes",
        }
        if name in self.hub.wrong:
            data = bytes(len(data))
        if body:
            self.hub.asked.append((name, self.headers.get("Range")))
        code, start = 200, 0
        if expected := self.headers.get("Range"):
            start = int(expected.removeprefix("bytes=").partition("-")[0])
            code = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.reply(code, data[start:], headers, body=body, breaks=body and self.hub.large(name))

    def reply(
        self, code: int, data: bytes, headers: dict[str, str], *, body: bool, breaks: bool = False
    ) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        if breaks and self.hub.broken > 0:
            self.hub.broken -= 1
            data = data[: len(data) // 2]
            self.close_connection = True
        self.hub.sent += len(data)
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(model_folder: Path, tmp_path: Path) -> Iterator[Hub]:
    files = contents(model_folder)
    # files that a model does not need
    files |= {
        "README.md": b"# a model",
        ".gitattributes": b"*",
        "unet/diffusion_pytorch_model.bin": b"x" * 999,
    }
    alone = save_model(tmp_path / "alone", tiny_pipeline())
    unet = {
        name.removeprefix("unet/"): data for name, data in contents(alone).items() if name.startswith("unet/")
    }
    hub = Hub({"cerspense/zeroscope_v2_576w": files, "adamdad/videocrafterv2_diffusers": unet})
    handler = type("OwnHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass(frozen=True)
class Command:
    """The command line with a home directory of its own."""

    home: Path

    @property
    def models(self) -> Path:
        return self.home / "data" / "vinfinity" / "models"

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "XDG_DATA_HOME": str(self.home / "data"),
            "HF_HOME": str(self.home / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **variables,
        }
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            environment.pop(name, None)
        return subprocess.run(
            [sys.executable, "-m", "vinfinity", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=self.home,
            timeout=300,
        )


@pytest.fixture
def command(tmp_path: Path) -> Command:
    home = tmp_path / "home"
    home.mkdir()
    return Command(home)


def test_a_model_is_fetched_verified_and_used_offline(hub: Hub, command: Command, model_folder: Path) -> None:
    done = command("models", "fetch", "zeroscope", "--endpoint", hub.url)
    assert done.returncode == 0, done.stderr
    folder = command.models / "zeroscope"
    assert done.stdout.strip() == str(folder)
    check_weights(folder, prefer_fp16=False)
    fetched = {name for name, _ in hub.asked}
    assert UNET in fetched
    assert fetched.isdisjoint({"README.md", ".gitattributes", "unet/diffusion_pytorch_model.bin"})
    record = json.loads((folder / "fetched.json").read_text())
    assert (record["repo"], record["revision"]) == ("cerspense/zeroscope_v2_576w", REVISION)
    assert record["files"][UNET] == hashlib.sha256((model_folder / UNET).read_bytes()).hexdigest()
    # again, without a server: nothing is requested
    asked = len(hub.asked)
    again = command("models", "fetch", "zeroscope", "--endpoint", "http://127.0.0.1:9")
    assert again.returncode == 0
    assert len(hub.asked) == asked
    plan = command(
        "generate", "-p", "a ball", "--model", "zeroscope", "--dry-run", "--size", "32x32", "--device", "cpu"
    )
    assert plan.returncode == 0, plan.stderr
    assert "zeroscope" in plan.stdout
    listed = command("models", "list").stdout
    assert [line.split()[0] for line in listed.splitlines() if "embedded" in line] == ["mini"]
    assert any(line.split()[:2] == ["zeroscope", "fetched"] for line in listed.splitlines())
    shown = command("models", "show", "zeroscope")
    assert shown.returncode == 0
    assert REVISION in shown.stdout


def test_a_model_is_fetched_without_a_token_that_cannot_be_read(hub: Hub, command: Command) -> None:
    token = command.home / "hf" / "token"
    token.mkdir(parents=True)
    done = command("models", "fetch", "zeroscope", "--endpoint", hub.url)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_models_cannot_be_written_to_is_named_before_anything_is_fetched(
    hub: Hub, command: Command
) -> None:
    done = command("models", "fetch", "zeroscope", "--endpoint", hub.url, XDG_DATA_HOME="/proc/nowhere")
    assert done.returncode == 4
    [line] = done.stderr.splitlines()
    assert line.startswith("error: /proc/nowhere/vinfinity/models: cannot be written (")
    assert line.endswith("; set XDG_DATA_HOME to another folder")
    assert hub.asked == []


def test_too_little_free_space_is_reported_before_anything_is_fetched(hub: Hub, command: Command) -> None:
    hub.announced = {UNET: 10**15}
    done = command("models", "fetch", "zeroscope", "--endpoint", hub.url)
    assert done.returncode == 4
    [line] = done.stderr.splitlines()
    assert f"{command.models}: has " in line
    assert " GB free, but 1000000.0 GB are needed; free some space, or set XDG_DATA_HOME" in line
    assert hub.asked == []


def test_pickled_files_are_counted_twice_since_they_are_converted(tmp_path: Path) -> None:
    free = disk_usage(tmp_path).free
    for name, fits in (("unet/a.safetensors", True), ("unet/a.bin", False)):
        with contextlib.nullcontext() if fits else pytest.raises(OutputError):
            check_space({name: free * 3 // 4}, tmp_path / "arrived", target=tmp_path)


def test_fetched_files_become_part_of_the_model_without_a_copy(tmp_path: Path) -> None:
    """A single file and shards; a copy would take the space of a large model twice."""
    source = save_model(tmp_path / "source")
    state = load_file(source / UNET)
    shards = {"a.safetensors": list(state)[:9], "b.safetensors": list(state)[9:]}
    for name, keys in shards.items():
        save_file({key: state[key] for key in keys}, source / "unet" / name)
    (source / UNET).unlink()
    index = {"weight_map": {key: name for name, keys in shards.items() for key in keys}}
    (source / f"{UNET}.index.json").write_text(json.dumps(index))
    made = convert(source, tmp_path / "made", link=True)
    ours = load_unet(made / "unet", device="cpu", dtype=torch.float32).state_dict()
    assert all(torch.equal(ours[name], state[name]) for name in state)
    copied = convert(source, tmp_path / "copied")
    before, linked, other = (
        {path.stat().st_ino for path in (model / "unet").glob("*.safetensors")}
        for model in (source, made, copied)
    )
    assert linked == before
    assert other.isdisjoint(before)


def test_a_unet_alone_is_completed_with_the_parts_it_needs(hub: Hub, command: Command) -> None:
    done = command("models", "fetch", "videocrafter2", "--endpoint", hub.url)
    assert done.returncode == 0, done.stderr
    check_weights(command.models / "videocrafter2", prefer_fp16=False)
    check_weights(command.models / "zeroscope", prefer_fp16=False)
    card = json.loads((command.models / "videocrafter2" / "card.json").read_text())
    assert card["sampler"] == "videocrafter2"
    assert not (command.models / ".fetching").exists() or not list((command.models / ".fetching").iterdir())


def test_a_lora_is_merged_into_the_model_that_it_needs(hub: Hub, command: Command) -> None:
    """T2V-Turbo over VideoCrafter2 with Zeroscope's other parts; test_lora.py tests the order of its layers."""
    network = UNet(UNetConfig.from_dict({**dict(tiny_unet().config), "time_cond_proj_dim": 256}))
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    table = unet_table(network.config, list(shapes))
    names = turbo_order({name: source.name.removeprefix(PREFIX) for name, source in table.items()}, shapes)
    factors = []
    for name in names:
        out, inputs, *kernel = shapes[name]
        factors += [torch.ones(out, 1, *[1] * len(kernel)), torch.full((1, inputs, *kernel), 0.01)]
    file = io.BytesIO()
    torch.save(factors, file)
    hub.repositories["jiachenli-ucsb/T2V-Turbo-VC2"] = {"unet_lora.pt": file.getvalue(), "x.bin": b"x"}
    done = command("models", "fetch", "t2v-turbo-vc2", "--endpoint", hub.url)
    assert done.returncode == 0, done.stderr
    base, turbo = (
        load_unet(command.models / name / "unet", device="cpu", dtype=torch.float32).state_dict()
        for name in ("videocrafter2", "t2v-turbo-vc2")
    )
    for name in names:
        if name in base:
            torch.testing.assert_close(turbo[name], base[name] + 0.01, rtol=0, atol=1e-6)
    arguments = ("-p", "a ball", "--model", "t2v-turbo-vc2", "-n", "2", "--size", "16x16", "--device", "cpu")
    made = command("generate", *arguments, "--out", "a.mp4")
    assert made.returncode == 0, made.stderr


def test_broken_transfers_are_resumed(hub: Hub, command: Command, tmp_path: Path) -> None:
    # larger than the ten megabytes that the hub's client buffers before it writes to disk
    wide = save_model(tmp_path / "wide", tiny_pipeline(block_out_channels=(96, 192)))
    size = (wide / UNET).stat().st_size
    assert size > 40e6
    hub.repositories["cerspense/zeroscope_v2_576w"] = contents(wide)
    hub.broken = 1
    done = command("models", "fetch", "zeroscope", "--endpoint", hub.url)
    # the client resumes by itself; if it gives up, the next attempt does
    if done.returncode != 0:
        done = command("models", "fetch", "zeroscope", "--endpoint", hub.url)
    assert done.returncode == 0, done.stderr
    [(name, asked)] = [(name, asked) for name, asked in hub.asked if asked is not None]
    start = int((asked or "").removeprefix("bytes=").partition("-")[0])
    assert name == UNET
    assert size / 4 < start <= size / 2
    ours = load_unet(command.models / "zeroscope" / "unet", device="cpu", dtype=torch.float32).state_dict()
    reference = load_file(wide / UNET)
    assert all(torch.equal(ours[name], reference[name]) for name in reference)


def test_a_file_with_a_wrong_hash_is_refused_and_deleted(hub: Hub, command: Command) -> None:
    hub.wrong = {UNET}
    done = command("models", "fetch", "zeroscope", "--endpoint", hub.url)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"{UNET} has the hash" in last
    assert not (command.models / "zeroscope").exists()
    assert not list(command.models.rglob("unet/*.safetensors"))
    hub.wrong = set()
    assert command("models", "fetch", "zeroscope", "--endpoint", hub.url).returncode == 0


def test_a_missing_server_and_unknown_names_are_one_line(hub: Hub, command: Command) -> None:
    done = command("models", "fetch", "modelscope", "--endpoint", hub.url)
    assert done.returncode == 1
    assert "ali-vilab/text-to-video-ms-1.7b: cannot be fetched" in done.stderr
    assert "Traceback" not in done.stderr
    done = command("models", "fetch", "zeroscop")
    assert done.returncode == 2
    assert "did you mean zeroscope?" in done.stderr
    done = command("generate", "-p", "a ball", "--model", "zeroscope")
    assert done.returncode == 2
    assert "has not been fetched yet; run vinfinity models fetch zeroscope" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_show_lists_the_problems_of_a_folder(command: Command, own_model: Path) -> None:
    done = command("models", "show", str(own_model))
    assert done.returncode == 0
    assert "M parameters, F32" in done.stdout
    assert "clips of 16 frames" in done.stdout
    path = own_model / UNET
    path.write_bytes(path.read_bytes()[:-10])
    (own_model / "vae" / "config.json").unlink()
    done = command("models", "show", str(own_model))
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2
    assert "truncated" in lines[0]
    assert "config.json is missing" in lines[1]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (
            [
                "unet/config.json",
                "unet/a.safetensors",
                "unet/a.fp16.safetensors",
                "unet/a.bin",
                "unet/a.non_ema.bin",
            ],
            ["unet/config.json", "unet/a.fp16.safetensors"],
        ),
        (["vae/a.fp16.safetensors", "vae/a.safetensors", "unet/a.bin"], ["unet/a.bin", "vae/a.safetensors"]),
        (
            ["config.json", "diffusion_pytorch_model.bin", "README.md"],
            ["config.json", "diffusion_pytorch_model.bin"],
        ),
        (
            [
                "unet/x-00001-of-00002.safetensors",
                "unet/x-00002-of-00002.safetensors",
                "unet/x.safetensors.index.json",
            ],
            [
                "unet/x-00001-of-00002.safetensors",
                "unet/x-00002-of-00002.safetensors",
                "unet/x.safetensors.index.json",
            ],
        ),
        (
            ["tokenizer/vocab.json", "tokenizer/merges.txt", "unet/a.bin", "zs2_576w/big.pth"],
            ["unet/a.bin", "tokenizer/vocab.json", "tokenizer/merges.txt"],
        ),
    ],
)
def test_only_needed_files_are_chosen(names: list[str], chosen: list[str]) -> None:
    assert sorted(needed(names)) == sorted(chosen)


def test_repositories_without_a_model_are_refused() -> None:
    with pytest.raises(ValueError, match="has no model"):
        needed(["README.md", "config.json"])
    with pytest.raises(ValueError, match=r"has no unet_lora\.pt"):
        needed(["a.bin"], only="unet_lora.pt")
