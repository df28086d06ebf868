"""Mutations of a file: of its bytes, and of the values, entries and headers of its format."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import pickle
import random
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

Mutation = Callable[[Path, random.Random], None]

FOREIGN = {"class_path": "evil_module.Evil", "init_args": {}}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**64, 10**30, 10**4000, 1e308, -1e308, 1e-320),
    *(math.nan, math.inf, -math.inf, 0.5, "", " ", "0", "x" * 100_000, "nan", "null", "\0", "a\nb", "é", "\ud800"),
    *(
        "[/INST]",
        "[b]",
        "[red",
        "$_{",
        "$x",
        "\\frac{",
        "<script>alert(1)</script>",
        "](javascript:alert(1))",
        "{{ 7 }}",
    ),
    *("../../..", "/", "/dev/zero", "/proc/self/mem", "~", "%s%n", "$(touch ran)", "`touch ran`", "__class__"),
    *("evil_module.Evil", "antigravity.Evil", "polytoken.os.system", "polytoken.files.os.system", "builtins.exec"),
    *([], {}, [[]], [None], {"": None}, [1, "a"], [[[[[]]]]], list(range(1000)), FOREIGN, [FOREIGN]),
    {"class_path": "polytoken.records.Path.unlink", "init_args": {"self": "x"}},
    {"class_path": "polytoken.building.importlib.import_module", "init_args": {"name": "evil_module"}},
    {"class_path": "polytoken.quantizers.VectorQuantizer", "init_args": {"codebook_size": 10**12, "code_dim": 4}},
    {"class_path": "polytoken..", "init_args": []},
)
DEEP = 100_000


class Touches:
    """A pickle that makes a directory when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 1, 2, 8, 64)) if content else 0):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(
        content[: draw.choice((0, 1, 4, len(content) // 2, len(content) - 1, draw.randrange(len(content) + 1)))]
    )


def extend(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content + draw.choice((b"\0", b"\n", b"{}", content[:64], draw.randbytes(512))))


def overwrite(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content) + 1)
    content[start : start + 16] = draw.choice((bytes(16), b"\xff" * 16, b"\x80" * 16, draw.randbytes(16), b""))
    path.write_bytes(content)


def replace(path: Path, draw: random.Random) -> None:
    """A file of another kind."""
    torch_file = io.BytesIO()
    torch.save({"state_dict": Touches()}, torch_file)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file closefile\nshowpage\n"
    others = (
        pickle.dumps(Touches()),
        torch_file.getvalue(),
        script,
        b"null",
        b"[1]",
        b"7",
        b'""',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\0}\0",
    )
    path.write_bytes(draw.choice(others))


def reencode(path: Path, draw: random.Random) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        path.write_bytes(f"{text} é".encode(draw.choice(("latin-1", "utf-16", "utf-16-le", "utf-32", "utf-7"))))
    except UnicodeEncodeError:
        path.write_bytes(text.encode("utf-16"))


def place(path: Path, draw: random.Random) -> None:
    """No file, but a directory, a loop of links, a dangling link, a pipe, or nothing."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    kind = draw.choice(("directory", "loop", "dangling", "pipe", "nothing"))
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "nothing":
        path.symlink_to(path.name if kind == "loop" else "nowhere")


BYTES: tuple[Mutation, ...] = (flip, flip, flip, truncate, extend, overwrite, replace, place)


def change(tree: Any, draw: random.Random) -> Any:
    """Plain data with a few nodes changed: another value or type, a key or item less or more."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        tree = _change(tree, draw)
    return tree


def _change(tree: Any, draw: random.Random) -> Any:
    places: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            stack.append(node[key])
    if not places or draw.random() < 0.03:
        return draw.choice(VALUES)
    node, key = draw.choice(places)
    what = draw.randrange(10)
    if what < 5:
        node[key] = draw.choice(VALUES)
    elif what == 5:
        node[key] = _other_type(node[key])
    elif what == 6:
        del node[key]
    elif what == 7 and isinstance(node, dict):
        node[draw.choice([value for value in VALUES if isinstance(value, str)])] = node.pop(key)
    elif what == 8 and isinstance(node, dict):
        node[draw.choice(("extra", "class_path", "", "[/b]", "$_{"))] = draw.choice(VALUES)
    elif isinstance(node, list):
        node.append(node[key])
    else:
        node[key] = {key: node[key]}
    return tree


def _other_type(value: Any) -> Any:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, bool | int | float) or value is None:
        return str(value)
    return (
        list(value)
        if isinstance(value, dict)
        else dict(enumerate(map(str, value)))
        if isinstance(value, list)
        else None
    )


def tree_of_json(path: Path, draw: random.Random) -> None:
    path.write_bytes(_json(change(json.loads(path.read_text()), draw)))


def deep_json(path: Path, draw: random.Random) -> None:
    opened, closed = draw.choice((("[", "]"), ('{"x": ', "}")))
    deep = opened * DEEP + "1" + closed * draw.choice((0, DEEP))
    keys = list(json.loads(path.read_text().splitlines()[0] if path.suffix == ".jsonl" else path.read_text()) or ["x"])
    path.write_text(draw.choice((deep, f'{{"{draw.choice(keys)}": {deep}}}')))


def wide_json(path: Path, draw: random.Random) -> None:
    path.write_text("[" + "0," * 1_000_000 + draw.choice(("0", "1" * 50_000, "1e999", "-")) + "]")


def _json(tree: Any) -> bytes:
    try:
        return json.dumps(tree).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError):  # keys of several types
        return b"7"


JSON: tuple[Mutation, ...] = (*[tree_of_json] * 12, deep_json, wide_json, reencode, *BYTES)


def line_of_jsonl(path: Path, draw: random.Random) -> None:
    lines = path.read_bytes().splitlines()
    number = draw.randrange(len(lines))
    lines[number] = _json(change(json.loads(lines[number]), draw))
    path.write_bytes(b"\n".join(lines))


JSONL: tuple[Mutation, ...] = (*[line_of_jsonl] * 12, deep_json, reencode, *BYTES)


def tree_of_yaml(path: Path, draw: random.Random) -> None:
    tree = change(yaml.safe_load(path.read_text()), draw)
    try:
        text = yaml.safe_dump(tree)
    except (yaml.YAMLError, ValueError, RecursionError):
        text = "7"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def bomb_of_yaml(path: Path, draw: random.Random) -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
    )
    texts = (
        *(laughs, f"data:\n  {laughs}".replace("\na", "\n  a"), merges, "a: &a [*a]\n", "data: &a {init_args: *a}\n"),
        *(
            "[" * 4000,
            "{x: " * 4000,
            "- " * 4000 + "x",
            "x: \0",
            "\t- x",
            "run: {stage: !!python/object/apply:os.mkdir [ran]}",
        ),
        *("!!python/name:os.system", "!!binary /w==", "? [a]\n: b", "2001-01-01", "<<: 7", "x: !!timestamp 2001-99-99"),
        f"run: {{stage: {'x' * 300}}}\n",
    )
    path.write_text(draw.choice((draw.choice(texts), f"{path.read_text()}\n{draw.choice(texts)}")))


YAML: tuple[Mutation, ...] = (*[tree_of_yaml] * 8, *[bomb_of_yaml] * 5, reencode, *BYTES)


def tree_of_checkpoint(path: Path, draw: random.Random) -> None:
    content = torch.load(path, weights_only=True)
    skipped = (
        {}
        if draw.random() < 0.2
        else {key: content.pop(key) for key in ("state_dict", "optimizer_states") if key in content}
    )
    torch.save({**skipped, **changed} if isinstance(changed := change(content, draw), dict) else changed, path)


CHECKPOINT: tuple[Mutation, ...] = (*[tree_of_checkpoint] * 14, *BYTES)


def tensors_of_release(path: Path, draw: random.Random) -> None:
    """Another tensor or name in a released checkpoint, or other plain data around its weights."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, weights_only=True)
    weights = content["model"]
    for _ in range(draw.choice((1, 1, 2))):
        name = draw.choice(list(weights))
        if draw.random() < 0.7:
            weights[name] = draw.choice(TENSORS)(weights[name])
        else:
            numbered = draw.choice(("1000000", "-1", "x", "", "1" * 5000))
            weights[draw.choice((re.sub(r"\d+", numbered, name, count=1), f"module.{name}"))] = weights.pop(name)
    torch.save(change(content, draw) if draw.random() < 0.3 else content, path)


TENSORS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda tensor: tensor.flatten()[:1].view([1] * tensor.ndim).expand(2**34, *tensor.shape[1:]),
    lambda tensor: tensor.flatten()[:1].view([1] * tensor.ndim).expand(*tensor.shape[:-1], 2**34),
    lambda tensor: tensor.expand(2**34, *tensor.shape),
    lambda tensor: tensor.flatten(),
    lambda tensor: tensor[:0],
    lambda tensor: tensor[None],
    lambda tensor: tensor.transpose(0, -1),
    lambda tensor: torch.zeros(()),
    lambda tensor: torch.full_like(tensor, math.nan),
    lambda tensor: torch.full_like(tensor, 3e38),
    lambda tensor: tensor.double() * 1e300,
    lambda tensor: tensor.half(),
    lambda tensor: tensor.long(),
    lambda tensor: tensor > 0,
    lambda tensor: tensor.to(torch.complex64),
    lambda tensor: tensor.to(torch.float8_e4m3fn),
    lambda tensor: tensor.to_sparse(),
    lambda tensor: tensor.to("meta"),
    lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    torch.nn.Parameter,
)
RELEASED: tuple[Mutation, ...] = (*[tensors_of_release] * 16, *BYTES)


def header_of_safetensors(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    described = header.get("__metadata__", {})
    if described and draw.random() < 0.8:
        key = draw.choice(list(described))
        try:
            described[key] = _json(change(json.loads(described[key]), draw)).decode("utf-8", "replace")
        except json.JSONDecodeError:
            described[key] = str(draw.choice(VALUES))[:100]
    else:
        header = change(header, draw)
    text = _json(header)
    path.write_bytes(
        struct.pack("<Q", draw.choice((len(text),) * 8 + (2**63, len(text) + 1))) + text + content[8 + length :]
    )


SAFETENSORS: tuple[Mutation, ...] = (*[header_of_safetensors] * 12, *BYTES)


def entry_of_npz(path: Path, draw: random.Random) -> None:
    """Another array, a header that lies, or another compression of an entry."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(entries))
    content = entries[name]
    what = draw.randrange(7)
    if what == 0:
        del entries[name]
    elif what == 1:
        shape = draw.choice(("(10000000000000,)", "(-1,)", "(3,", "()", "(0,)", f"({10**40},)", "(1, 2, 3)", "(" * 500))
        kind = draw.choice(("<f8", "|O", "|u1", "<U4000000", "|V0", "<c16", "f8,f8", "junk"))
        head = f"{{'descr': '{kind}', 'fortran_order': {draw.choice((True, False))}, 'shape': {shape}, }}".encode()
        entries[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content[128:]
    elif what == 2:
        arrays = (
            np.array([math.nan]),
            np.zeros((2, 3)),
            np.array("text"),
            np.full(3, 2**63, np.uint64),
            np.zeros((0, 4)),
        )
        arrays += (-np.eye(64), np.full((2, 32, 32, 3), 9, np.uint8), np.array([Touches()], dtype=object))
        buffer = io.BytesIO()
        np.save(buffer, draw.choice(arrays), allow_pickle=True)
        entries[name] = buffer.getvalue()
    elif what == 3:
        entries[name] = content[: draw.randrange(len(content))]
    elif what == 4 and b"{" in content[128:]:
        entries[name] = content[:128] + content[128:].replace(b"{", draw.choice((b"[", b"<", b"\xff")), 1)
    elif what == 5:
        path.write_bytes(bomb(name))
        return
    method = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    if method != zipfile.ZIP_STORED or what == 6:  # damage behind the headers; bit 0 of the flags says encrypted
        raw = bytearray(path.read_bytes())
        raw[draw.randrange(30, len(raw))] ^= 1 << draw.randrange(8)
        if what == 6:
            raw[6] |= 1
            raw[raw.rfind(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(raw)


def bomb(name: str, gigabytes: int = 3) -> bytes:
    """An npz of some megabytes whose only array has some gigabytes of zeros."""
    size = gigabytes << 30
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (size // 8,)})
    head, block = buffer.getvalue(), bytes(1 << 24)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)  # behind it nothing refers to what came before
    body += (packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)) * (size // len(block)) + packer.flush()
    raw, total = name.encode(), len(head) + size  # the checksum is wrong: nobody should get so far
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 0, 0, len(body), total, len(raw), 0) + raw
    central = struct.pack(
        "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, 0, len(body), total, len(raw), *[0] * 4, 0, 0
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(central) + len(raw), len(local) + len(body), 0)
    return local + body + central + raw + end


NPZ: tuple[Mutation, ...] = (*[entry_of_npz] * 10, *BYTES)


def names_of_tree(path: Path, draw: random.Random) -> None:
    """Another name of a file or folder, as a data set might have."""
    names = ("[b]", "$_{", "<script>.png", "\udcff", "-rf", "x" * 200, " ", "..hidden", "a\nb", "{}", "%s")
    inner = [one for one in path.parent.parent.rglob("*") if not one.is_symlink()]
    chosen = draw.choice(inner)
    target = chosen.with_name(draw.choice(names) + chosen.suffix)
    if not target.exists():
        chosen.rename(target)


def pixels(path: Path, draw: random.Random) -> None:
    """An image of an absurd shape, or a header that says so."""
    from PIL import Image

    width, height = draw.choice(((1, 20_000), (20_000, 1), (1, 1), (2, 3000)))
    if draw.random() < 0.5:
        Image.new(draw.choice(("RGB", "L", "RGBA", "P", "1", "I;16")), (width, height)).save(path, "PNG")
        return
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(
        ">2I", *draw.choice(((1, 2_000_000), (1, 80_000_000), (2**31 - 1, 2**31 - 1), (0, 0), (65_535, 65_535)))
    )
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


IMAGE: tuple[Mutation, ...] = (*[pixels] * 6, *[names_of_tree] * 3, *BYTES)
LINES: tuple[Mutation, ...] = (reencode, *BYTES)

BY_SUFFIX: dict[str, tuple[Mutation, ...]] = {
    ".json": JSON,
    ".jsonl": JSONL,
    ".yaml": YAML,
    ".ckpt": CHECKPOINT,
    ".pt": CHECKPOINT,
    ".pth": RELEASED,
    ".safetensors": SAFETENSORS,
    ".npz": NPZ,
    ".png": IMAGE,
    ".txt": LINES,
}


def mutate(path: Path, draw: random.Random) -> str:
    """Change a file in place; returns the name of the mutation."""
    mutation = draw.choice(BY_SUFFIX.get(path.suffix, BYTES))
    mutation(path, draw)
    return mutation.__name__
