"""The optimizer: orthogonalized momentum (Muon) for matrices, Adam for embeddings and norms."""
import torch


def orthogonalize(g):
    """Newton-Schulz iteration: (n, rows, cols) matrices to about their nearest orthogonal ones."""
    x = g.bfloat16()
    wide = g.shape[1] > g.shape[2]
    if wide:
        x = x.transpose(1, 2)
    x = x / (x.float().flatten(1).norm(dim=1)[:, None, None] + 1e-7).to(x.dtype)
    for _ in range(5):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.transpose(1, 2) if wide else x).float()


class Optimizer:
    def __init__(self, model, lr_matrix=0.02, lr_other=3e-3, decay=0.01):
        self.model, self.lr_matrix, self.lr_other, self.decay = model, lr_matrix, lr_other, decay
        self.params = dict(model.named_parameters())
        self.state = {n: torch.zeros_like(p) for n, p in self.params.items()}
        self.square = {n: torch.zeros_like(p) for n, p in self.params.items()
                       if not self.is_matrix(n)}
        self.steps = 0

    @staticmethod
    def is_matrix(name):
        return name.endswith(("qkv", "out", "gate_up", "down"))

    def parts(self, name, t):
        """The separate matrices inside a fused parameter."""
        s = self.model.s
        if name.endswith("qkv"):
            return t.split((s.heads * s.head_dim, s.kv_heads * s.head_dim,
                            s.kv_heads * s.head_dim))
        return t.split(s.ffn) if name.endswith("gate_up") else (t,)

    @torch.no_grad()
    def step(self, scale):
        """One update with the learning rates times `scale`; the gradients are cleared."""
        self.steps += 1
        by_shape = {}
        for name, p in self.params.items():
            g, p.grad = p.grad, None
            m = self.state[name]
            if self.is_matrix(name):
                m.lerp_(g, 0.05)
                for u, w in zip(self.parts(name, g.lerp(m, 0.95)), self.parts(name, p)):
                    by_shape.setdefault(tuple(w.shape), []).append((u, w))
                continue
            v = self.square[name]
            m.lerp_(g, 0.1)
            v.lerp_(g * g, 0.05)
            update = (m / (1 - 0.9 ** self.steps)) / ((v / (1 - 0.95 ** self.steps)).sqrt() + 1e-8)
            p.add_(update, alpha=-self.lr_other * scale)
        for (rows, cols), pairs in by_shape.items():
            updates = orthogonalize(torch.stack([u for u, _ in pairs]))
            lr = self.lr_matrix * scale
            for u, (_, w) in zip(updates, pairs):
                w.mul_(1 - lr * self.decay).add_(u, alpha=-lr * max(1, rows / cols) ** 0.5)

    def state_dict(self):
        return {"momentum": self.state, "square": self.square, "steps": self.steps}

    def load_state_dict(self, d):
        self.state, self.square, self.steps = d["momentum"], d["square"], d["steps"]
