"""Forward passes of released networks in plain torch, written from their descriptions, by the released names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

State = Mapping[str, Tensor]
VAR_CONVOLUTIONS = (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
"""Shared convolution of each of VAR's ten scales."""


def ldm_encode(state: State, images: Tensor) -> Tensor:
    """Images to the output of ``quant_conv``, as LDM and its kin encode."""
    features = _normed(state, "encoder.norm_out", ldm_features(state, images))
    return _convolution(state, "quant_conv", _convolution(state, "encoder.conv_out", features))


def ldm_features(state: State, images: Tensor) -> Tensor:
    """Images to the features before the encoder's last norm."""
    features = _convolution(state, "encoder.conv_in", images)
    stages = _count(state, "encoder.down.")
    for stage in range(stages):
        for block in range(2):
            features = _blocks(state, features, f"encoder.down.{stage}", block)
        if stage < stages - 1:
            padded = functional.pad(features, (0, 1, 0, 1))
            features = _convolution(state, f"encoder.down.{stage}.downsample.conv", padded, stride=2, padding=0)
    return _middle(state, "encoder", features)


def ldm_decode(state: State, latents: Tensor) -> Tensor:
    """Quantized latents to images, stages counted from the highest resolution."""
    features = _convolution(state, "decoder.conv_in", _convolution(state, "post_quant_conv", latents))
    features = _middle(state, "decoder", features)
    for stage in reversed(range(_count(state, "decoder.up."))):
        for block in range(3):
            features = _blocks(state, features, f"decoder.up.{stage}", block)
        if stage > 0:
            doubled = functional.interpolate(features, scale_factor=2.0, mode="nearest")
            features = _convolution(state, f"decoder.up.{stage}.upsample.conv", doubled)
    return _convolution(state, "decoder.conv_out", _normed(state, "decoder.norm_out", features))


def multi_scale(
    features: Tensor, state: State, before: str, scales: Sequence[int], directions: bool
) -> tuple[Tensor, list[Tensor]]:
    """Codes (B, N) of features (B, d, K, K), and the sum of all scales after each one."""
    table = state[f"{before}.embedding.weight"]
    rest, total, codes, sums = features, torch.zeros_like(features), [], []
    for scale, side in enumerate(scales):
        rows = functional.interpolate(rest, size=(side, side), mode="area").permute(0, 2, 3, 1)
        if directions:
            found = (functional.normalize(rows, dim=-1) @ functional.normalize(table, dim=-1).T).argmax(-1)
        else:
            found = torch.cdist(rows.flatten(0, 2), table).argmin(-1).view(rows.shape[:3])
        vectors = table[found].permute(0, 3, 1, 2)
        if scale < len(scales) - 1:
            vectors = functional.interpolate(vectors, size=features.shape[2:], mode="bicubic")
        name = f"{before}.quant_resi.qresi_ls.{VAR_CONVOLUTIONS[scale]}"
        blurred = functional.conv2d(vectors, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)
        added = vectors / 2 + blurred / 2
        rest, total = rest - added, total + added
        codes.append(found.flatten(1))
        sums.append(total)
    return torch.cat(codes, dim=1), sums


def next_scale_logits(state: State, labels: Tensor, sums: Sequence[Tensor], scales: Sequence[int]) -> Tensor:
    """Logits (B, L, V) of all positions, given the sums (B, C, K, K) after each scale."""
    condition = state["class_emb.weight"][labels]
    active = functional.silu(condition)
    words = [
        functional.linear(
            functional.interpolate(total, size=(side, side), mode="area").flatten(2).transpose(1, 2),
            state["word_embed.weight"],
            state["word_embed.bias"],
        )
        for total, side in zip(sums, scales[1:], strict=False)
    ]
    level = torch.cat([torch.full((side**2,), index) for index, side in enumerate(scales)])
    x = torch.cat([condition.unsqueeze(1) + state["pos_start"], *words], dim=1)
    x = x + state["lvl_embed.weight"][level] + state["pos_1LC"]
    mask = torch.zeros(len(level), len(level), dtype=x.dtype)
    mask[level.unsqueeze(1) < level] = -math.inf
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for block in range(depth):
        own = {name.removeprefix(f"blocks.{block}."): value for name, value in state.items()}
        if "ada_gss" in own:
            shared = functional.linear(active, state["shared_ada_lin.1.weight"], state["shared_ada_lin.1.bias"])
            modulation = (shared.view(-1, 1, 6, x.shape[-1]) + own["ada_gss"]).flatten(1)
        else:
            modulation = functional.linear(active, own["ada_lin.1.weight"], own["ada_lin.1.bias"])
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unsqueeze(1).chunk(6, dim=-1)
        normed = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
        bias = torch.cat([own["attn.q_bias"], torch.zeros_like(own["attn.q_bias"]), own["attn.v_bias"]])
        heads = own["attn.scale_mul_1H11"].shape[1]
        fused = functional.linear(normed, own["attn.mat_qkv.weight"], bias).unflatten(-1, (3, heads, -1))
        queries, keys, values = fused.permute(2, 0, 3, 1, 4)
        queries = functional.normalize(queries, dim=-1) * own["attn.scale_mul_1H11"].clamp_max(math.log(100)).exp()
        attention = (queries @ functional.normalize(keys, dim=-1).transpose(2, 3) + mask).softmax(-1)
        mixed = (attention @ values).transpose(1, 2).flatten(2)
        x = x + gate1 * functional.linear(mixed, own["attn.proj.weight"], own["attn.proj.bias"])
        normed = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
        hidden = functional.linear(normed, own["ffn.fc1.weight"], own["ffn.fc1.bias"])
        hidden = functional.gelu(hidden, approximate="tanh")
        x = x + gate2 * functional.linear(hidden, own["ffn.fc2.weight"], own["ffn.fc2.bias"])
    modulation = functional.linear(active, state["head_nm.ada_lin.1.weight"], state["head_nm.ada_lin.1.bias"])
    scale, shift = modulation.unsqueeze(1).chunk(2, dim=-1)
    x = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
    return functional.linear(x, state["head.weight"], state["head.bias"])


def as_ldm(state: State) -> dict[str, Tensor]:
    """Weights of LlamaGen's encoder and decoder by the names of LDM, whose decoder counts its stages backwards."""
    renamed = {}
    last = _count(state, "decoder.conv_blocks.") - 1
    middle = {"0": "block_1", "1": "attn_1", "2": "block_2"}
    for name, tensor in state.items():
        half, _, rest = name.partition(".")
        parts = rest.split(".")
        if parts[0] == "conv_blocks":
            stage = int(parts[1]) if half == "encoder" else last - int(parts[1])
            kind = "block" if parts[2] == "res" else parts[2]
            parts = ["down" if half == "encoder" else "up", str(stage), kind, *parts[3:]]
        elif parts[0] == "mid":
            parts = ["mid", middle[parts[1]], *parts[2:]]
        renamed[".".join([half, *parts])] = tensor
    return renamed


def dit_velocity(state: State, states: Tensor, times: Tensor, labels: Tensor) -> Tensor:
    """Velocity of LightningDiT and its kin at normalised latents (B, C, h, w)."""
    kernel = state["x_embedder.proj.weight"]
    side = kernel.shape[-1]
    patches = functional.conv2d(states, kernel, state["x_embedder.proj.bias"], stride=side)
    grid = patches.shape[2:]
    features = patches.flatten(2).mT + state["pos_embed"]
    angles = times[:, None] * 10000.0 ** (-torch.arange(128, dtype=times.dtype) / 128)
    embedded = torch.cat([angles.cos(), angles.sin()], dim=1)
    embedded = _linear(state, "t_embedder.mlp.2", functional.silu(_linear(state, "t_embedder.mlp.0", embedded)))
    condition = functional.silu(embedded + state["y_embedder.embedding_table.weight"][labels])[:, None]
    for block in (f"blocks.{number}" for number in range(_count(state, "blocks."))):
        modulation = _linear(state, f"{block}.adaLN_modulation.1", condition).chunk(6, dim=2)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        normed = _rms_normed(state, f"{block}.norm1", features) * (1 + scale) + shift
        features = features + gate * _attention(state, f"{block}.attn", normed)
        normed = _rms_normed(state, f"{block}.norm2", features) * (1 + mlp_scale) + mlp_shift
        first, second = _linear(state, f"{block}.mlp.w12", normed).chunk(2, dim=2)
        features = features + mlp_gate * _linear(state, f"{block}.mlp.w3", functional.silu(first) * second)
    shift, scale = _linear(state, "final_layer.adaLN_modulation.1", condition).chunk(2, dim=2)
    normed = _rms_normed(state, "final_layer.norm_final", features) * (1 + scale) + shift
    output = _linear(state, "final_layer.linear", normed).unflatten(2, (side, side, -1)).unflatten(1, grid)
    return torch.einsum("bhwpqc->bchpwq", output).flatten(4).flatten(2, 3)


def gpt_losses(state: State, codes: Tensor, labels: Tensor, head_dim: int = 64) -> list[Tensor]:
    """Cross-entropies of the sub-codes (B, k, N) of LlamaGen, FAR and iFSQ's grouped LlamaGen."""
    tables, outputs, head = _gpt_names(state, codes.shape[1])
    embedded = [state[f"{name}.weight"][one] for name, one in zip(tables, codes.unbind(1), strict=True)]
    if "aggregation_layer.weight" in state:
        tokens = _linear(state, "aggregation_layer", torch.cat(embedded, dim=2))
    else:
        tokens = torch.stack(embedded).sum(0)
    first = state["cls_embedding.embedding_table.weight"][labels][:, None]
    rotary = _gpt_positions(codes.shape[2], head_dim)
    hidden = _gpt_blocks(state, "layers.", torch.cat([first, tokens[:, :-1]], dim=1), rotary)
    steps = torch.stack([hidden, *embedded[:-1]], dim=2)  # (B, N, k, dim): step i predicts sub-code i
    if head:
        steps = _gpt_blocks(state, head, steps.flatten(0, 1), rotary).unflatten(0, steps.shape[:2])
    normed = _rms_normed(state, "norm", steps, 1e-5)
    logits = [normed[:, :, i] @ state[f"{name}.weight"].mT for i, name in enumerate(outputs)]
    return [functional.cross_entropy(one.flatten(0, 1), codes[:, i].flatten()) for i, one in enumerate(logits)]


def dit_positions(state: State) -> dict[str, Tensor]:
    """The fixed tables that a released diffusion transformer stores with its weights."""
    count, dim = state["pos_embed"].shape[1:]
    head_dim = state["feat_rope.freqs_cos"].shape[1]
    place = torch.arange(count, dtype=torch.float64)
    rows, columns = (place // math.isqrt(count)).floor(), place % math.isqrt(count)

    def angles(places: Tensor, number: int) -> Tensor:
        return places[:, None] * 10000.0 ** (-torch.arange(number, dtype=torch.float64) / number)

    row, column = angles(rows, dim // 4), angles(columns, dim // 4)
    turns = torch.cat([angles(rows, head_dim // 4), angles(columns, head_dim // 4)], dim=1).repeat_interleave(2, dim=1)
    return {
        "pos_embed": torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)[None].float(),
        "feat_rope.freqs_cos": turns.cos().float(),
        "feat_rope.freqs_sin": turns.sin().float(),
    }


def _gpt_names(state: State, count: int) -> tuple[list[str], list[str], str]:
    """Names of the embedding tables and output layers, and what stands before the head's blocks."""
    if count == 1:
        return ["tok_embeddings"], ["output"], ""
    if "0_emb.weight" in state:
        return [f"{i}_emb" for i in range(count)], [f"output.{i}" for i in range(count)], "factorized_blocks."
    numbers = range(1, count + 1)
    return [f"tok_embeddings_{i}" for i in numbers], [f"output_{i}" for i in numbers], "ar_head."


def _gpt_positions(count: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (1 + N, head_dim / 2): zeros for the class, then the grid; rows turn the first pairs."""
    place = torch.arange(count, dtype=torch.float64)
    side, pairs = math.isqrt(count), head_dim // 4
    frequencies = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    angles = torch.cat([(place // side)[:, None] * frequencies, (place % side)[:, None] * frequencies], dim=1)
    none = torch.zeros(1, 2 * pairs, dtype=torch.float64)
    return torch.cat([none, angles.cos()]), torch.cat([none, angles.sin()])


def _gpt_blocks(state: State, before: str, features: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Pre-norm blocks (B, n, dim) of causal attention at the first n rotary positions, and SwiGLU."""
    cosine, sine = (part[: features.shape[1]] for part in rotary)
    later = torch.ones(features.shape[1], features.shape[1], dtype=torch.bool).triu(1)
    for block in (f"{before}{number}" for number in range(_count(state, before))):
        normed = _rms_normed(state, f"{block}.attention_norm", features, 1e-5)
        qkv = (normed @ state[f"{block}.attention.wqkv.weight"].mT).chunk(3, dim=2)
        query, key, value = (part.unflatten(2, (-1, 2 * cosine.shape[1])).transpose(1, 2) for part in qkv)
        turned = []
        for part in (query, key):
            even, odd = part[..., ::2], part[..., 1::2]
            pair = [even * cosine - odd * sine, odd * cosine + even * sine]
            turned.append(torch.stack(pair, dim=-1).flatten(-2))
        scores = (turned[0] @ turned[1].mT / query.shape[-1] ** 0.5).masked_fill(later, -torch.inf)
        attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        features = features + attended @ state[f"{block}.attention.wo.weight"].mT
        normed = _rms_normed(state, f"{block}.ffn_norm", features, 1e-5)
        first, second = (normed @ state[f"{block}.feed_forward.{name}.weight"].mT for name in ("w1", "w3"))
        features = features + (functional.silu(first) * second) @ state[f"{block}.feed_forward.w2.weight"].mT
    return features


def _attention(state: State, name: str, features: Tensor) -> Tensor:
    cosine, sine = state["feat_rope.freqs_cos"], state["feat_rope.freqs_sin"]
    qkv = _linear(state, f"{name}.qkv", features).unflatten(2, (3, -1, cosine.shape[1])).permute(2, 0, 3, 1, 4)
    turned = []
    for part, norm in zip(qkv[:2], ("q_norm", "k_norm"), strict=True):
        rows = _rms_normed(state, f"{name}.{norm}", part) if f"{name}.{norm}.weight" in state else part
        partner = torch.stack([-rows[..., 1::2], rows[..., ::2]], dim=-1).flatten(-2)
        turned.append(rows * cosine + partner * sine)
    weights = (turned[0] @ turned[1].mT / cosine.shape[1] ** 0.5).softmax(-1)
    return _linear(state, f"{name}.proj", (weights @ qkv[2]).transpose(1, 2).flatten(2))


def _blocks(state: State, features: Tensor, stage: str, block: int) -> Tensor:
    features = _residual(state, f"{stage}.block.{block}", features)
    attention = f"{stage}.attn.{block}"
    return _spatial_attention(state, attention, features) if f"{attention}.q.weight" in state else features


def _middle(state: State, half: str, features: Tensor) -> Tensor:
    if f"{half}.mid_block.0.conv1.weight" in state:
        features = _residual(state, f"{half}.mid_block.0", features)
        return _residual(state, f"{half}.mid_block.1", features)
    features = _residual(state, f"{half}.mid.block_1", features)
    features = _spatial_attention(state, f"{half}.mid.attn_1", features)
    return _residual(state, f"{half}.mid.block_2", features)


def _residual(state: State, name: str, features: Tensor) -> Tensor:
    hidden = _convolution(state, f"{name}.conv1", _normed(state, f"{name}.norm1", features))
    hidden = _convolution(state, f"{name}.conv2", _normed(state, f"{name}.norm2", hidden))
    shortcut = f"{name}.nin_shortcut"
    return hidden + (_convolution(state, shortcut, features) if f"{shortcut}.weight" in state else features)


def _spatial_attention(state: State, name: str, features: Tensor) -> Tensor:
    normed = _group_normed(state, f"{name}.norm", features)
    query, key, value = (_convolution(state, f"{name}.{part}", normed).flatten(2) for part in "qkv")
    weights = (query.mT @ key / features.shape[1] ** 0.5).softmax(-1)
    return features + _convolution(state, f"{name}.proj_out", (value @ weights.mT).view_as(features))


def _convolution(state: State, name: str, features: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
    kernel = state[f"{name}.weight"]
    around = kernel.shape[-1] // 2 if padding is None else padding
    return functional.conv2d(features, kernel, state[f"{name}.bias"], stride=stride, padding=around)


def _normed(state: State, name: str, features: Tensor) -> Tensor:
    return functional.silu(_group_normed(state, name, features))


def _group_normed(state: State, name: str, features: Tensor) -> Tensor:
    groups = min(32, features.shape[1] // 4)  # 32 at the released widths, and fewer in the small networks of the tests
    return functional.group_norm(features, groups, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def _rms_normed(state: State, name: str, features: Tensor, epsilon: float = 1e-6) -> Tensor:
    return features * (features.square().mean(-1, keepdim=True) + epsilon).rsqrt() * state[f"{name}.weight"]


def _linear(state: State, name: str, features: Tensor) -> Tensor:
    return functional.linear(features, state[f"{name}.weight"], state[f"{name}.bias"])


def _count(state: State, before: str) -> int:
    return len({name.removeprefix(before).split(".")[0] for name in state if name.startswith(before)})
