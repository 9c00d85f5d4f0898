"""Faults that somebody might make, at least one against every invariant of CONTRIBUTING.md and every answer of a method.

Each is a small patch: a file of the package, text that is in it exactly once, what stands there instead, and the tests that
should notice. A text that is gone fails loudly: write the fault anew for what has taken its place.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One patch.

    Attributes:
        name: what is wrong then.
        file: under ``src/foveate``.
        old, new: text that is there exactly once, and what replaces it.
        tests: what should notice, as arguments of pytest.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


METHODS = "tests/methods/test_contract.py"


def probes(check: str) -> tuple[str, ...]:
    """The probes on two families, with one property of the contract."""
    return ("tests/test_probes.py", "-k", f"{check} and (llava- or qwen2_5_vl)")


CHOSEN = [
    Fault(
        "1: of a share of one, one token goes",
        "schedule.py",
        "return max(math.floor(n * keep + 0.5)",
        "return max(math.floor((n - 1) * keep + 0.5)",
        (METHODS, "-k", "keeping_everything"),
    ),
    Fault(
        "2: a row's padding is seen by its tokens",
        "runtime/masks.py",
        "column, hidden = keys.index, None if keys.valid is None else ~keys.valid",
        "column, hidden = keys.index, None",
        probes("batch_is_its_rows"),
    ),
    Fault(
        "3: decoding forgets the padding of the cache",
        "runtime/cache.py",
        "valid = torch.cat([valid, valid.new_ones(batch, self.tail)], dim=1)",
        "valid = None",
        probes("generation_of_a_batch"),
    ),
    Fault(
        "4: an entry tells what it holds in place of what it stands for",
        "runtime/cache.py",
        "new = varied(self, total=self.total + n, tail=self.tail + n, _made={}, _shown=[])",
        "new = varied(self, total=self.total + n, tail=self.tail, _made={}, _shown=[])",
        probes("cached_step"),
    ),
    Fault(
        "4: the entries of a cache keep the order of rows that were exchanged",
        "runtime/cache.py",
        "return None if x is None else x.index_select(0, rows.to(x.device))",
        "return x",
        probes("exchanged"),
    ),
    Fault(
        "5: functions that were replaced stay when the handle is removed",
        "runtime/hooks.py",
        "delattr(module, name) if own is None else setattr(module, name, own)",
        "setattr(module, name, stock)",
        probes("removal"),
    ),
    Fault(
        "5: removing a handle leaves the first hook",
        "runtime/hooks.py",
        "while self._undo:",
        "while len(self._undo) > 1:",
        probes("removal"),
    ),
    Fault(
        "7: text behind a removed image is numbered anew under positions=keep",
        "runtime/layout.py",
        "return self.index if self.place is None else self.index.index_put((self.row, self.slot), self.place)",
        "return torch.arange(self.width, device=self.index.device).expand_as(self.index)",
        probes("cached_step"),
    ),
    Fault(
        "8: images of a row are taken in the wrong order of chunks",
        "schedule.py",
        "return survivors(seen + n, share) - survivors(seen, share)",
        "return survivors(n, share)",
        ("tests/test_rounding.py",),
    ),
    Fault(
        "9: a mean of merged tokens is not divided by what they weigh",
        "ops/merge.py",
        "mass = segment_sum(weight.to(wide.dtype), group, n_groups)",
        "mass = segment_sum(torch.ones_like(weight).to(wide.dtype), group, n_groups)",
        ("tests/ops/test_merge.py",),
    ),
    Fault(
        "10: rows that keep less are as wide as their own tokens",
        "runtime/layout.py",
        "width = max(1, *lengths)",
        "width = max(1, lengths[0])",
        probes("batch_is_its_rows"),
    ),
    Fault(
        "11: eager attention is told of padding as sdpa is",
        "runtime/masks.py",
        'return "float"',
        'return "bool"',
        probes("eager"),
    ),
    Fault(
        "12: halves are rounded down",
        "schedule.py",
        "return max(math.floor(n * keep + 0.5)",
        "return max(math.ceil(n * keep - 0.5)",
        ("tests/test_schedule.py", "tests/test_rounding.py"),
    ),
    Fault(
        "12: an image may lose all of its tokens by rounding",
        "schedule.py",
        "least: int = 1) -> int:",
        "least: int = 0) -> int:",
        ("tests/test_rounding.py",),
    ),
    Fault(
        "13: the projector is counted for tokens that have left",
        "cost.py",
        'now["projector"] = trace.output_rows * projector',
        'now["projector"] = trace.full_output_rows * projector',
        probes("report_counts_what_ran"),
    ),
    Fault(
        "signals: what the last text token attends to is the same for all tokens",
        "runtime/signals/kinds/last_row.py",
        'return here.own_rows(here.reading(self), "last")[:, 0]',
        'return here.own_rows(here.reading(self), "last")[:1, 0].expand(len(here.sample), -1)',
        ("tests/runtime/test_signals.py", "tests/runtime/test_samples.py"),
    ),
    Fault(
        "signals: received attention is the sum of another's queries, too",
        "runtime/signals/kinds/received.py",
        "return paid.sum(1) / there.to(paid.device)[here.sample]",
        "return paid.sum(1)",
        ("tests/test_signal_addresses.py", "tests/runtime/test_signals.py"),
    ),
    Fault(
        "schedule: what one chunk of an image was given is not taken off the next one",
        "schedule.py",
        "return _nearest(after * (seen + n), before) - _nearest(after * seen, before)",
        "return _nearest(after * n, before)",
        ("tests/test_rounding.py",),
    ),
    Fault(
        "registry: a plug-in takes the name of one of ours",
        "plugins.py",
        "if name == other.name() or cls.__name__ == other.__name__:",
        "if name == other.name() and cls.__name__ == other.__name__ and False:",
        ("tests/test_plugins.py",),
    ),
    Fault(
        "registry: one plug-in that cannot be imported takes the others with it",
        "plugins.py",
        "except (Exception, SystemExit) as error:",
        "except ImportWarning as error:",
        ("tests/test_plugins.py",),
    ),
    Fault(
        "reduce: an author's NaN scores pass",
        "method.py",
        "if tokens.strict and",
        "if not tokens.strict and",
        ("tests/test_authors.py",),
    ),
    Fault(
        "park: what comes back is what went on",
        "method.py",
        "return parked.tokens.hidden.index_copy(0, parked.keep, tokens.hidden)",
        "return parked.tokens.hidden",
        ("tests/runtime/test_exact.py", "tests/runtime/test_attend.py"),
    ),
    Fault(
        "sight: text sees what is hidden from it once it is cached",
        "runtime/sight.py",
        "return Groups(number, (number >= 0) & ~text_sees[number], span)",
        "return Groups(number, torch.zeros_like(number, dtype=torch.bool), span)",
        ("tests/answers/test_sight.py",),
    ),
    Fault(
        "channels: a bias is that of the first channels",
        "runtime/ffn.py",
        "upper = up.index_select(0, chosen + self._shift)",
        "upper = up.index_select(0, chosen)",
        ("tests/answers/test_channels.py",),
    ),
    Fault(
        "skip: tokens that skip an FFN are given what their neighbours got",
        "runtime/ffn.py",
        "rows.index_copy_(0, self.whole.to(made.device), made.flatten(0, -2))",
        "rows.index_copy_(0, self.whole.to(made.device).flip(0), made.flatten(0, -2))",
        ("tests/answers/test_skip.py",),
    ),
    Fault(
        "append: registers of the tower stand where the last patch does",
        "runtime/blocks.py",
        "layout.moved or layout.tokens.marks is not None",
        "layout.moved",
        ("tests/answers/test_append_tower.py",),
    ),
    Fault(
        "text_pass: a short text sees the padding of a long one as its end",
        "runtime/alone.py",
        "return states.flatten(0, 1)[padded_index(counts, device)]",
        "return states.flip(1).flatten(0, 1)[padded_index(counts, device)]",
        ("tests/runtime/test_signals_of_inputs.py",),
    ),
    Fault(
        "reuse: a layer that lends is forgotten before the last one that takes",
        "runtime/reuse.py",
        "self.until[reuse.source] = i",
        "self.until.setdefault(reuse.source, i)",
        ("tests/answers/test_reuse.py",),
    ),
    Fault(
        "inject: text gets of images that come after it",
        "runtime/injecting.py",
        "images = torch.searchsorted(begins, place + call.past, right=True)",
        "images = torch.full_like(place, len(begins))",
        ("tests/answers/test_inject.py",),
    ),
    Fault(
        "inject: of a cropped image something is still remembered",
        "runtime/remembering.py",
        "images = tuple(image for image in self.images if image.place <= length)",
        "images = self.images",
        ("tests/answers/test_inject.py",),
    ),
    Fault(
        "inject: beams remember the images of other beams",
        "runtime/remembering.py",
        "self.rows = [self.rows[row] for row in rows]",
        "self.rows = [self.rows[row] for row in sorted(rows)]",
        ("tests/answers/test_inject.py",),
    ),
    Fault(
        "append: a new token sees the one behind it",
        "runtime/appending.py",
        "return (j <= i) | ~(is_new[b, i] | new_key)",
        "return (j <= i + 1) | ~(is_new[b, i] | new_key)",
        ("tests/answers/test_append.py", "-k", "logits_are_those"),
    ),
    Fault(
        "cache: keys of what is freed leave, and values of others",
        "runtime/freeing.py",
        "take_rows(entry.keys, take, 2), take_rows(entry.values, take, 2)",
        "take_rows(entry.keys, take, 2), entry.values[:, :, : take.shape[1]]",
        ("tests/answers/test_cache.py", "-k", "plain_loop"),
    ),
    Fault(
        "cache: every chunk ends its prompt",
        "runtime/freeing.py",
        "ends = call.past + call.length >= prompt.total and bool(all_spans)",
        "ends = bool(all_spans)",
        ("tests/answers/test_cache.py", "-k", "chunks"),
    ),
    Fault(
        "virtual: a merged token is paid what one of its members is paid",
        "runtime/signals/reading.py",
        "return (total / count if mean else total).to(x.dtype)",
        "return (total / count).to(x.dtype)",
        ("tests/answers/test_virtual_with.py", "-k", "paid"),
    ),
    Fault(
        "virtual: tokens come back without their members",
        "runtime/decoder.py",
        "call.layout, call.tower, call.members = lot.outer, lot.tower, lot.members",
        "call.layout, call.tower, call.members = lot.outer, lot.tower, None",
        ("tests/answers/test_virtual_with.py", "-k", "parked"),
    ),
    Fault(
        "memory: the images of a memory change places",
        "runtime/stored.py",
        "self.encodings.adopt(pixels, images, parts, width or None)",
        "self.encodings.adopt(pixels, images[::-1], parts, width or None)",
        ("tests/runtime/test_recall.py",),
    ),
    Fault(
        "memory: one of another method is taken",
        "runtime/stored.py",
        "if self.method != other.method:",
        "if len(self.method) != len(other.method):",
        ("tests/runtime/test_recall.py", "-k", "goes_where"),
    ),
    Fault(
        "trace: a decode site costs what its last step costs",
        "runtime/trace.py",
        "visit.flops += last.flops",
        "visit.flops += 0",
        ("tests/lab/report/test_trace.py",),
    ),
    Fault(
        "state: beams go on with the memory of other beams",
        "runtime/state.py",
        "changes[-1] = changes[-1][rows.to(changes[-1].device)]",
        "changes[-1] = rows",
        ("tests/runtime/test_state.py",),
    ),
    Fault(
        "keep: an entry without keys is counted as if it had them",
        "shares.py",
        "stored = [cached[i] * row / full_row for",
        "stored = [cached[i] for",
        ("tests/test_keep.py", "-k", "bytes_that_the_cache"),
    ),
    Fault(
        "keep: what leaves the cache after the prompt is not promised",
        "units.py",
        'return prod(site.keep for site in here if site.at == "cache") * (0.5 if without_keys else 1)',
        "return 0.5 if without_keys else 1.0",
        ("tests/test_keep.py", "-k", "bytes_that_the_cache"),
    ),
    Fault(
        "keep: tokens that use some channels of an FFN count in full",
        "shares.py",
        "through += partly * some / every",
        "through += partly",
        ("tests/test_keep.py", "-k", "work_of_visual"),
    ),
    Fault(
        "threshold: an image of which no token reaches it loses all",
        "tokens.py",
        "return self.keep_mask((score >= threshold).index_fill(0, best, True))",
        "return self.keep_mask(score >= threshold)",
        ("tests/test_threshold.py", "-k", "best_in_any_case"),
    ),
]
