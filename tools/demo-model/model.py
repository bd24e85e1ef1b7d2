"""A small Llama in PyTorch: the training-time model, and Hugging Face export / import."""
import json
import math
import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class Shape:
    """The sizes of the model; every field has the meaning it has in a Hugging Face config."""

    def __init__(self, hidden=256, layers=6, heads=4, kv_heads=2, head_dim=64, ffn=768,
                 vocab=2048, context=1024, theta=10000.0, eps=1e-5):
        self.hidden, self.layers, self.heads, self.kv_heads = hidden, layers, heads, kv_heads
        self.head_dim, self.ffn, self.vocab, self.context = head_dim, ffn, vocab, context
        self.theta, self.eps = theta, eps

    def config(self):
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": self.hidden, "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab, "max_position_embeddings": self.context,
            "rms_norm_eps": self.eps, "rope_theta": self.theta, "hidden_act": "silu",
            "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
            "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16",
        }

    @staticmethod
    def from_config(c):
        return Shape(c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"],
                     c["num_key_value_heads"], c["head_dim"], c["intermediate_size"],
                     c["vocab_size"], c["max_position_embeddings"], c["rope_theta"],
                     c["rms_norm_eps"])


def rms_norm(x, weight, eps):
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return (y * weight).to(x.dtype)


def rotate(x, cos, sin):
    """Rotary position embedding, the two halves of a head paired (Hugging Face layout)."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Layer(nn.Module):
    """One block. q/k/v and gate/up are kept as one matrix each: larger products are faster."""

    def __init__(self, s):
        super().__init__()
        self.s = s
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        self.norm1 = nn.Parameter(torch.ones(s.hidden))
        self.norm2 = nn.Parameter(torch.ones(s.hidden))
        self.qkv = nn.Parameter(torch.empty(q + 2 * kv, s.hidden))
        self.out = nn.Parameter(torch.empty(s.hidden, q))
        self.gate_up = nn.Parameter(torch.empty(2 * s.ffn, s.hidden))
        self.down = nn.Parameter(torch.empty(s.hidden, s.ffn))

    def forward(self, h, cos, sin, dtype, drop):
        s, (b, n, _) = self.s, h.shape
        x = rms_norm(h, self.norm1, s.eps).to(dtype)
        qkv = F.linear(x, self.qkv.to(dtype)).view(b, n, s.heads + 2 * s.kv_heads, s.head_dim)
        q, k, v = qkv.split((s.heads, s.kv_heads, s.kv_heads), 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = s.heads // s.kv_heads
        k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
        a = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2),
                                           v.transpose(1, 2), is_causal=True)
        a = F.linear(a.transpose(1, 2).reshape(b, n, -1), self.out.to(dtype))
        h = h + F.dropout(a, drop, drop > 0)
        x = rms_norm(h, self.norm2, s.eps).to(dtype)
        gate, up = F.linear(x, self.gate_up.to(dtype)).chunk(2, -1)
        x = F.linear(F.silu(gate) * up, self.down.to(dtype))
        return h + F.dropout(x, drop, drop > 0)


class Llama(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.s = s = shape
        self.embed = nn.Parameter(torch.empty(s.vocab, s.hidden))
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = nn.Parameter(torch.ones(s.hidden))
        for name, p in self.named_parameters():
            if p.dim() > 1:
                residual = name.endswith(("out", "down"))
                nn.init.normal_(p, 0, 0.02 / (math.sqrt(2 * s.layers) if residual else 1))
        freq = s.theta ** -(torch.arange(0, s.head_dim, 2).double() / s.head_dim)
        angle = torch.outer(torch.arange(s.context).double(), freq)[:, None, :]
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def hidden(self, ids, dtype=torch.float32, drop=0.0):
        """The normalised last hidden state of every position; rows start at position 0."""
        n = ids.shape[1]
        h = F.embedding(ids, self.embed).to(dtype)
        for layer in self.layers:
            h = layer(h, self.cos[:n], self.sin[:n], dtype, drop)
        return rms_norm(h, self.norm, self.s.eps)

    def logits(self, h):
        return F.linear(h, self.embed.to(h.dtype)).float()

    def loss(self, ids, where, target, weight, drop=0.0, dtype=torch.bfloat16):
        """Weighted cross entropy at the flat positions `where` only."""
        h = self.hidden(ids, dtype, drop).flatten(0, 1)[where]
        ce = F.cross_entropy(self.logits(h), target, reduction="none")
        return (ce * weight).sum()

    def tensors(self):
        """The parameters as (Hugging Face name, view) pairs."""
        s = self.s
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        yield "model.embed_tokens.weight", self.embed
        yield "model.norm.weight", self.norm
        for i, layer in enumerate(self.layers):
            p = f"model.layers.{i}."
            yield p + "input_layernorm.weight", layer.norm1
            yield p + "post_attention_layernorm.weight", layer.norm2
            for name, part in zip("qkv", layer.qkv.split((q, kv, kv))):
                yield p + f"self_attn.{name}_proj.weight", part
            yield p + "self_attn.o_proj.weight", layer.out
            for name, part in zip(("gate", "up"), layer.gate_up.split(s.ffn)):
                yield p + f"mlp.{name}_proj.weight", part
            yield p + "mlp.down_proj.weight", layer.down


def save(model, folder):
    """Writes config.json and model.safetensors (F16), the latter in one atomic step."""
    os.makedirs(folder, exist_ok=True)
    header, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, p in sorted(model.tensors(), key=lambda t: t[0]):
        a = p.detach().float().numpy().astype(np.float16)
        assert np.isfinite(a).all(), name
        header[name] = {"dtype": "F16", "shape": list(a.shape),
                        "data_offsets": [at, at + a.nbytes]}
        blobs.append(a.tobytes())
        at += a.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path = os.path.join(folder, "model.safetensors")
    with open(path + ".tmp", "wb") as f:
        f.write(len(head).to_bytes(8, "little") + head + b"".join(blobs))
    os.replace(path + ".tmp", path)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(model.s.config(), f, indent=1)
        f.write("\n")


def load(folder):
    """The model in `folder`, in float32."""
    with open(os.path.join(folder, "config.json")) as f:
        model = Llama(Shape.from_config(json.load(f)))
    with open(os.path.join(folder, "model.safetensors"), "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        data = f.read()
    with torch.no_grad():
        for name, p in model.tensors():
            lo, hi = header[name]["data_offsets"]
            a = np.frombuffer(data[lo:hi], np.float16).astype(np.float32)
            p.copy_(torch.from_numpy(a.reshape(header[name]["shape"])))
    return model
