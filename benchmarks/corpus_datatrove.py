"""datatrove's side of benchmarks/corpus.py: its own FineWeb pipeline, run in its own environment.

    python benchmarks/corpus_datatrove.py OUT MODEL LANGUAGES WARC…     (benchmarks/corpus.py calls it so)

The steps, their order and their arguments are those of datatrove's examples/fineweb.py. What differs, each in
datatrove's favour or without effect on its speed, so that it runs on a machine without a network:
- the language model is the lid.176.ftz given as MODEL (the example downloads lid.176.bin);
- tldextract uses the suffix list that it ships with;
- an extraction may take 30 seconds of wall-clock time instead of 1, so that no page is lost on a busy machine;
- no exclusion writers: dropped documents are counted by id and reason, their texts are not written;
- no TokensCounter (it needs a tokenizer from a hub); one task, one process, no Slurm.
The block lists are loaded before the steps' clocks start. CPU time is that of this process and its children, by step
on datatrove's own timers.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace


def cpu_seconds() -> float:
    """Processor time of this process, of its children that ended and of those that are running."""
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        children = file.read().split()
    for child in children:
        try:
            with open(f"/proc/{child}/schedstat") as file:
                total += int(file.read().split()[0]) / 1e9  # nanoseconds on a processor
        except FileNotFoundError:
            continue  # it ended between the two reads; the next call finds it in os.times()
    return total


class Reasons:
    """Takes the place of an exclusion writer: records why each document was dropped."""

    def __init__(self, stage: str, into: dict[str, tuple[str, str]]):
        self.stage, self.into = stage, into

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __deepcopy__(self, _):
        return self  # the executor runs a copy of the pipeline; the reasons are needed here

    def write(self, document, rank=0) -> None:
        """Called by datatrove for each dropped document."""
        self.into[document.id] = (self.stage, str(document.metadata.get("filter_reason", "")))


def patch(model: str) -> None:
    """The changes that the module's docstring lists."""
    import tldextract
    from datatrove.utils import lid, stats

    stats.time = SimpleNamespace(perf_counter=cpu_seconds)
    lid.cached_asset_path_or_download = lambda *_, **__: model
    extract = tldextract.TLDExtract
    tldextract.TLDExtract = lambda: extract(suffix_list_urls=(), cache_dir=None)


def first_part(warcs: list[str], out: Path, languages: list[str], why: dict[str, tuple[str, str]]) -> list:
    """From WARC files to filtered documents."""
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
        LanguageFilter,
        URLFilter,
    )
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter

    paths = out / "paths.txt"
    paths.write_text("\n".join(Path(warc).name for warc in warcs) + "\n")
    return [
        WarcReader(str(Path(warcs[0]).parent), paths_file=str(paths)),
        URLFilter(exclusion_writer=Reasons("url", why)),
        Trafilatura(favour_precision=True, timeout=30),
        LanguageFilter(languages or None, exclusion_writer=Reasons("language", why)),
        GopherRepetitionFilter(exclusion_writer=Reasons("gopher repetition", why)),
        GopherQualityFilter(exclusion_writer=Reasons("gopher quality", why)),
        C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=Reasons("c4", why)),
        FineWebQualityFilter(exclusion_writer=Reasons("fineweb", why)),
        JsonlWriter(str(out / "filtered")),
    ]


def second_part(out: Path, why: dict[str, tuple[str, str]]) -> list[list]:
    """MinHash deduplication in its four pipelines; the last one also replaces personal data."""
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(
        hash_config=HashConfig(hash_fc="sha1", precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5
    )
    signatures, buckets, remove = (str(out / name) for name in ("signatures", "buckets", "remove"))
    filtered = str(out / "filtered")
    return [
        [JsonlReader(filtered), MinhashDedupSignature(output_folder=signatures, config=config)],
        [MinhashDedupBuckets(input_folder=signatures, output_folder=buckets, config=config)],
        [MinhashDedupCluster(input_folder=buckets, output_folder=remove, config=config)],
        [
            JsonlReader(filtered),
            MinhashDedupFilter(input_folder=remove, exclusion_writer=Reasons("minhash", why)),
            PIIFormatter(),
            JsonlWriter(str(out / "deduplicated")),
        ],
    ]


def run(pipeline: list, logs: Path, tasks: int) -> list[tuple[str, float]]:
    """Run one pipeline in this process; CPU-seconds by step."""
    from datatrove.executor import LocalPipelineExecutor

    stats = LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(logs)).run()
    return [(step.name, step.time_stats.total) for step in stats.stats]


def main(out: Path, model: str, languages: str, warcs: list[str]) -> None:
    """Run the chain over the files and write OUT/result.json."""
    out.mkdir(parents=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    patch(model)
    why: dict[str, tuple[str, str]] = {}
    first = first_part(warcs, out, [code for code in languages.split(",") if code], why)
    second = second_part(out, why)
    first[1].download_data()  # the block lists' 4.6 million domains: a fixed cost, whatever the crawl's size
    fixed = cpu_seconds()
    steps = run(first, out / "logs" / "0", 1)
    for number, pipeline in enumerate(second, 1):
        tasks = 14 if number == 2 else 1  # MinhashDedupBuckets: a task a bucket
        steps += run(pipeline, out / "logs" / str(number), tasks)
    result = {"fixed": fixed, "total": cpu_seconds(), "steps": steps, "dropped": why}
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
