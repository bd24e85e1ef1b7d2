"""docs/quality.md and its plots, from the results of experiments.py. No figure on the page is typed by hand."""
import os
import statistics

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

import experiments  # noqa: E402
from experiments import BITS, METHODS, PARTS, SEEDS, TUNED  # noqa: E402

COLORS = {"rtn": "#9e9e9e", "gptq": "#616161", "atom": "#90caf9", "quarot": "#ffcc80", "bisup-atom": "#1565c0",
          "bisup-quarot": "#e65100"}
TITLES = {"demo": "demo", "story": "story-llama-656k", "demo-outliers": "demo, outliers",
          "story-outliers": "story-llama-656k, outliers"}
FACTS_OF = [("demo", "plain"), ("demo", "quarot"), ("demo-outliers", "plain"), ("demo-outliers", "quarot")]
BARS = {("atom", "W3A3KV3"): .5, ("quarot", "W3A3KV3"): .4, ("atom", "W4A4KV4"): .7, ("quarot", "W4A4KV4"): .7}


class Table:
    """Results by what they are about."""

    def __init__(self, results):
        self.quality, self.ablation, self.facts = {}, {}, {}
        for result in results.values():
            c = result["case"]
            if c["kind"] == "facts":
                self.facts[c["model"], c["base"], c["kv_bits"], c["prompt_kv"]] = result
            elif "part" in c:
                self.ablation[c["model"], c["method"], c["part"]] = result
            else:
                self.quality[c["model"], c["method"], c["bits"], c["seed"]] = result
        self.models = [m for m in TITLES if any(k[0] == m for k in self.quality)]
        self.ablated = [m for m in self.models if any(k[0] == m for k in self.ablation)]

    def values(self, model, method, bits, field="kl"):
        return [self.quality[model, method, bits, s]["eval"][field] for s in SEEDS
                if (model, method, bits, s) in self.quality]

    def mean(self, model, method, bits, field="kl"):
        values = self.values(model, method, bits, field)
        return statistics.fmean(values) if values else None

    def mean_of_models(self, method, bits):
        """The mean over the models of the mean over the seeds; None where one is missing."""
        means = [self.mean(m, method, bits) for m in self.models]
        return None if not means or None in means else statistics.fmean(means)


def number(value, digits=4):
    return "–" if value is None else f"{value:.{digits}f}"


def with_spread(values, digits=4):
    if not values:
        return "–"
    text = number(statistics.fmean(values), digits)
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def markdown(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows]) + "\n"


# ---- Plots ---------------------------------------------------------------------------------------

def plot_methods(table, path):
    fig, axes = plt.subplots(1, len(BITS), figsize=(12, 4), sharey=False)
    for axis, bits in zip(axes, BITS):
        for i, method in enumerate(METHODS):
            for j, model in enumerate(table.models):
                values = table.values(model, method, bits)
                if not values:
                    continue
                mean = statistics.fmean(values)
                error = statistics.stdev(values) if len(values) > 1 else None
                axis.bar(j + (i - 2.5) * .13, mean, .12, color=COLORS[method], yerr=error, capsize=2,
                         label=method if j == 0 else None)
        axis.set_yscale("log")
        axis.set_title(bits)
        axis.set_xticks(range(len(table.models)), [TITLES[m].replace(", ", ",\n").replace("-656k", "")
                                                   for m in table.models], fontsize=7)
        axis.grid(axis="y", alpha=.3)
    axes[0].set_ylabel("mean KL to the full-precision model (nats)")
    fig.legend(*axes[-1].get_legend_handles_labels(), ncols=len(METHODS), loc="upper center", frameon=False)
    fig.tight_layout(rect=(0, 0, 1, .92))
    fig.savefig(path, dpi=120)
    plt.close(fig)


def plot_ablation(table, path):
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for axis, method in zip(axes, TUNED):
        names, heights = [], []
        for part in PARTS:
            ratios = [ablation_ratio(table, m, method, part) for m in table.ablated]
            ratios = [r for r in ratios if r is not None]
            if ratios:
                names.append(part)
                heights.append(statistics.fmean(ratios))
        axis.barh(range(len(names)), heights, color=[COLORS[method]] + ["#bdbdbd"] * (len(names) - 1))
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_title(f"{method}, W3A3KV3")
        axis.set_xlabel(f"KL, as a share of {method.removeprefix('bisup-')}'s")
        axis.grid(axis="x", alpha=.3)
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def plot_facts(table, path):
    fig, axes = plt.subplots(1, 4, figsize=(12, 3.4), sharey=True)
    for axis, (model, base) in zip(axes, FACTS_OF):
        full = table.facts.get((model, base, 16, "fp16"))
        bits = [b for b in (4, 3, 2) if (model, base, b, "fp16") in table.facts]
        for kind, label, color in (("fp16", "system prompt's KV at FP16", "#1565c0"),
                                   ("low", "all KV low-bit", "#e65100")):
            shares = [exact_share(table.facts[model, base, b, kind]) for b in bits
                      if (model, base, b, kind) in table.facts]
            axis.plot(range(len(shares)), shares, "o-", color=color, label=label)
        if full:
            axis.axhline(exact_share(full), color="#616161", linestyle="--", label="all KV at FP16")
        axis.set_xticks(range(len(bits)), [f"{b} bits" for b in bits])
        axis.set_ylim(0, 103)
        axis.set_title(f"{TITLES[model]}; K {'rotated' if base == 'quarot' else 'before RoPE'}", fontsize=9)
        axis.grid(alpha=.3)
    axes[0].set_ylabel("exact answers (%)")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


# ---- Figures -------------------------------------------------------------------------------------

def exact_share(result):
    return 100 * result["facts"]["exact"] / result["facts"]["items"]


def ablation_ratio(table, model, method, part):
    """KL relative to the base method's, of seed 1."""
    base = table.quality.get((model, method.removeprefix("bisup-"), "W3A3KV3", SEEDS[0]))
    own = table.ablation.get((model, method, part))
    return own["eval"]["kl"] / base["eval"]["kl"] if base and own else None


def bars_section(table):
    rows = []
    for (base, bits), bar in BARS.items():
        ours, theirs = table.mean_of_models("bisup-" + base, bits), table.mean_of_models(base, bits)
        if ours is None or theirs is None:
            continue
        ratio = ours / theirs
        rows.append([bits, f"bisup-{base} / {base}", number(ours), number(theirs), f"{ratio:.2f}", f"≤ {bar}",
                     "met" if ratio <= bar else "**missed**"])
    return markdown(["bits", "methods", "mean KL", "of the base", "ratio", "aim", ""], rows)


def quality_section(table):
    parts = []
    for bits in BITS:
        rows = [[method] + [with_spread(table.values(m, method, bits)) for m in table.models] +
                [number(table.mean_of_models(method, bits))] for method in METHODS]
        parts.append(f"### {bits}, groups of 128\n\nMean KL to the full-precision model, in nats.\n\n" +
                     markdown(["method"] + [TITLES[m] for m in table.models] + ["mean"], rows))
        rows = [[method] + [f"{number(table.mean(m, method, bits, 'ppl'), 2)}, "
                            f"{number(table.mean(m, method, bits, 'top1'), 3)}" for m in table.models]
                for method in METHODS]
        parts.append("Perplexity, and top-1 agreement with the full-precision model.\n\n" +
                     markdown(["method"] + [TITLES[m] for m in table.models], rows))
    return "\n".join(parts)


def ablation_section(table):
    rows = []
    for part in PARTS:
        row = [part]
        for method in TUNED:
            row += [number(ablation_ratio(table, m, method, part), 2) for m in table.ablated]
        rows.append(row)
    header = ["part"] + [f"{t.removeprefix('bisup-')}: {TITLES[m]}" for t in TUNED for m in table.ablated]
    return markdown(header, rows)


def facts_section(table):
    rows = []
    for model, base in FACTS_OF:
        full = table.facts.get((model, base, 16, "fp16"))
        for bits in (4, 3, 2):
            high, low = table.facts.get((model, base, bits, "fp16")), table.facts.get((model, base, bits, "low"))
            if not (high and low and full):
                continue
            lost = full["facts"]["exact"] - low["facts"]["exact"]
            won = high["facts"]["exact"] - low["facts"]["exact"]
            rows.append([TITLES[model], "after rotation" if base == "quarot" else "before RoPE", bits,
                         full["facts"]["exact"], high["facts"]["exact"], low["facts"]["exact"],
                         f"{won} of {lost} ({100 * won / lost:.0f} %)" if lost > 0 else "nothing was lost"])
    return markdown(["model", "K quantized", "KV bits", "exact, all KV FP16", "prompt FP16", "all low",
                     "recovered by the FP16 prompt"], rows)


PAGE = """# Quality of the quantized models

Measured on {date} on {machine}, by `{command}` ({cases} cases, {hours:.1f} hours). Nothing on this page is typed by hand.

**What is compared.** Four models: the demo model, story-llama-656k, and their *outlier-equivalent* variants
(`tools/outlier_variant.py`): the same function, with activation outliers such as large models have. Excess loss is the
mean KL divergence of a quantized model from the full-precision one, over {tokens} tokens in windows of {context}, which
neither calibration nor tuning saw, nor, for the demo model, training. A figure of BiSup with ± is the mean of the seeds {seeds} with their standard
deviation as far as they have been measured; without, of seed {seed} alone.
Weights are symmetric with one scale for 128 columns (here: a whole row or a few parts of one); a W3 matrix takes 3.1 to
3.3 bits a weight. Windows of calibration text: {tuning}.

BiSup's parts are our reconstruction from the paper's abstract ([bisup.md](bisup.md)); these figures are of these small
models and say nothing about the paper's.

## The aims

{bars}
{missing}## All methods

![KL of all methods](quality/methods.png)

{quality}
## What each part of BiSup does

KL at W3A3KV3 as a share of the base method's, seed {seed}, with one part left out at a time. Below 1: better than the base.
Tuned block by block with {ablation_settings}, without the end-to-end stage, so the first row is worse than the figures above.

![Ablation](quality/ablation.png)

{ablation}
## What the system prompt's precision is worth

Models with full-precision weights answer 200 questions about ten facts in their system prompts; only the KV cache is
low-bit. *FP16*: the system prompt's keys and values stay at full precision, as BiSup's prompt mixed precision has it.

![Exact answers](quality/prompt_kv.png)

{facts}
## Larger models

For whoever has the weights (Hugging Face folders) and some hours; with a GPU backend these become minutes. WikiText-2 as
the published protocol joins it:

{commands}
"""


def commands():
    lines = ["```"]
    for model in ("Llama-2-7b-hf", "Meta-Llama-3-8B", "Qwen2.5-7B"):
        for bits in ("W4A4KV4", "W3A3KV3"):
            out = f"{model}-bisup-quarot-{bits}"
            lines.append(f"bisup quantize {model} {out} --method bisup-quarot --bits {bits} --group 128 \\\n"
                         f"      --calibration wikitext2_train.txt --samples 128 --seq-len 2048 --seed 0")
            lines.append(f"bisup eval {out} --text wikitext2_test_joined_lf.txt --context 2048 --reference {model}")
    return "\n".join(lines + ["```"])


def settings_text(t):
    text = f"{t['samples']} windows, {t['epochs']} epochs"
    return text + (f" and {t['end_to_end']} end to end" if t["end_to_end"] else "")


def tuning_text():
    return (f"{experiments.BASE_SAMPLES} for GPTQ, Atom and QuaRot; for BiSup " +
            "; ".join(f"{settings_text(t)} ({name})" for name, t in experiments.TUNING.items()) +
            f"; at 8 bits {settings_text(experiments.TUNING_8_BITS)}")


def missing_text(results, cases):
    """A sentence on cases that have no result yet; empty when all have one."""
    count = len([c for c in cases if c not in results])
    return f"**{count} of {len(cases)} cases have not been measured yet** (mostly further seeds); `make reproduce` goes on.\n\n" \
        if count else ""


def write_page(results, cases, docs, info):
    """cases: the names of all that there is to measure."""
    table = Table(results)
    pictures = os.path.join(docs, "quality")
    os.makedirs(pictures, exist_ok=True)
    plot_methods(table, os.path.join(pictures, "methods.png"))
    plot_ablation(table, os.path.join(pictures, "ablation.png"))
    plot_facts(table, os.path.join(pictures, "prompt_kv.png"))
    some = next(iter(table.quality.values()))
    seconds = sum(r["seconds"] for r in results.values())
    page = PAGE.format(cases=len(results), hours=seconds / 3600, tokens=some["case"]["tokens"],
                       context=experiments.CONTEXT, seeds=', '.join(map(str, SEEDS)), seed=SEEDS[0],
                       tuning=tuning_text(), ablation_settings=settings_text(experiments.TUNING_ABLATION),
                       bars=bars_section(table), quality=quality_section(table), ablation=ablation_section(table),
                       missing=missing_text(results, cases), facts=facts_section(table), commands=commands(), **info)
    with open(os.path.join(docs, "quality.md"), "w", encoding="utf-8") as f:
        f.write(page)
