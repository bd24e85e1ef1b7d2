#!/usr/bin/env python3
"""Measures every quantization method and writes docs/quality.md with its plots.

Usually called by `make reproduce`. An interrupted run goes on where it was; --report only writes the page again.

    reproduce.py --program build/release/bisup --folder build/reproduce
    reproduce.py --report
    reproduce.py --only 'story_.*W3A3KV3_s1$'     # some cases, by name
"""
import argparse
import datetime
import os
import platform
import re
import sys
import time

import experiments
import report

DEFAULT = os.path.join(experiments.ROOT, "build", "reproduce")


def machine():
    """The processor's name and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            name = next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--program", default=os.path.join(experiments.ROOT, "build", "release", "bisup"))
    p.add_argument("--folder", default=DEFAULT, help="models, results (default: build/reproduce)")
    p.add_argument("--docs", default=os.path.join(experiments.ROOT, "docs"), help="where quality.md goes")
    p.add_argument("--only", default="", help="cases whose name matches this regular expression")
    p.add_argument("--tokens", type=int, default=16384, help="evaluated tokens (%(default)s)")
    p.add_argument("--threads", type=int, default=0, help="0: one per core")
    p.add_argument("--report", action="store_true", help="write the page from the results that are there")
    args = p.parse_args()
    setup = experiments.Setup(args.program, args.folder, args.threads)
    names = [name for name, _ in setup.cases(args.tokens)]
    if not args.report:
        for reason in setup.missing:
            print(f"left out: {reason}", file=sys.stderr)
        cases = [c for c in setup.cases(args.tokens) if re.search(args.only, c[0])]
        start = time.time()
        for i, (name, case) in enumerate(cases):
            result = setup.measure(name, case)
            figure = (f"KL {result['eval']['kl']:.4f}" if "eval" in result else
                      f"{result['facts']['exact']} exact")
            print(f"[{i + 1}/{len(cases)}] {name}: {figure} ({result['seconds']} s; "
                  f"{(time.time() - start) / 60:.1f} min)", flush=True)
    results = experiments.load_results(args.folder)
    if not results:
        raise SystemExit(f"no results in {args.folder}: run without --report first")
    info = {"machine": machine(), "date": datetime.date.today().isoformat(), "command": "make reproduce"}
    report.write_page(results, names, args.docs, info)
    print(f"{os.path.relpath(os.path.join(args.docs, 'quality.md'))} has been written")


if __name__ == "__main__":
    main()
