"""What the steward has seen of an endpoint: the monitor of its champion, and both variants of a rollout.

Counts, a sample and counters come from the gateways, bounded; outcomes come from the store, where labels are durable, by a
cursor. So a crash loses at most what was told since the last save, and no label.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymlops.data.schema import DataContract
from raymlops.lake import Lake
from raymlops.monitor.examine import Examination
from raymlops.monitor.insight import Insight
from raymlops.monitor.monitor import FORMAT, Monitor, Watcher
from raymlops.monitor.quality import row_losses
from raymlops.monitor.report import DriftReport
from raymlops.monitor.triage import Diagnosis
from raymlops.registry.package import download
from raymlops.serving.analysis import Comparison, VariantStats
from raymlops.serving.predictor import Predictor
from raymlops.serving.rollout import Confirming, Rollout
from raymlops.sketch.histogram import pack_array, unpack_array
from raymlops.sketch.observed import Observed
from raymlops.store import Lease, Outcome, Store

_KEPT_REPORTS = 50
JUDGED = "watch_rows"
"""The newest window's rows, which the diagnosis looks at: as large as all else that is saved, so written once a window."""


class Watch:
    """A plain class; the steward's lock of the watch protects it, not the one of the state: see :class:`Steward`.

    Attributes
    ----------
    labelled : labelled rows, over all versions, since this champion's first or since the last retraining began
    standing : the newest report of this champion that no retraining has answered yet
    insight : what kind of trouble that is, whether the error budget burns, and when a refit is due
    """

    def __init__(
        self, endpoint: str, spec: Monitor, store: Store, lake: Lake, home: str, lease: Lease | None = None
    ) -> None:
        self._endpoint, self._spec, self._store, self._lake, self._home = endpoint, spec, store, lake, home
        self._lease = lease
        self._watcher: Watcher | None = None
        self._contract: DataContract | None = None
        self._version: int | None = None
        self._reports: deque[dict[str, Any]] = deque(maxlen=_KEPT_REPORTS)
        self._compared: Rollout | Confirming | None = None
        self._pending: deque[DriftReport] = deque()
        self._dirty, self._kept_window = False, -1
        self._loss_scale = 1.0
        saved = store.get("watch", endpoint) or {}
        self._cursor: int = saved.get("cursor", 0)
        self._rows: int = saved.get("rows", 0)
        self._ignored: int = saved.get("ignored", 0)
        self.standing: DriftReport | None = None
        self.insight = Insight(spec)
        self.insight.load(saved.get("insight"))
        self.labelled: int = saved.get("labelled", 0)
        self._comparing: str = saved.get("comparing", "")
        self._stats = {int(key): VariantStats.from_dict(item) for key, item in saved.get("stats", {}).items()}
        self._saved = saved

    def use(self, spec: Monitor) -> None:
        """Watch by another spec from the next version on: what is known of the present one was counted by the old one."""
        self._spec = spec

    def follow(self, version: int | None) -> None:
        """Watch another champion, against its own reference; what was saved of it is taken up again."""
        if version is None or version == self._version:
            return
        predictor = self._load(version)
        self._contract = predictor.contract
        # A rollout's analysis takes losses in [0, 1]; an absolute error is measured against the largest one promised.
        largest = float(np.nanmax(predictor.reference.losses, initial=0.0))
        self._loss_scale = largest or 1.0 if predictor.contract.task == "regression" else 1.0
        self.standing = None
        self._pending.clear()
        if self.insight.spec != self._spec:
            kept, self.insight = self.insight.to_dict(), Insight(self._spec)
            self.insight.load(kept)
        self._kept_window = -1
        self._watcher = Watcher(self._spec, predictor.reference, predictor.contract, version, predictor.profile)
        self.insight.follow(version, predictor.reference, predictor.contract, predictor.predict, self._watcher.baseline)
        saved, self._saved = self._saved, {}
        counted = saved.get("watcher") if saved.get("version") == version else None
        if counted is None:
            self.labelled = 0
        elif counted.get("format") == FORMAT:
            self._watcher.load_state(counted)
            self._take_up(saved, version)
        self._version, self._dirty = version, True
        self._save()

    def _take_up(self, saved: dict[str, Any], version: int) -> None:
        """The reports that were not answered, or not even told, when the steward died."""
        assert self._watcher is not None
        last = saved.get("last")
        report, diagnosis = None, None
        if last is not None:
            self._reports.append(last)
        if last is not None and last["version"] == version:
            report = DriftReport.from_dict({name: item for name, item in last.items() if name != "diagnosis"})
            diagnosis = None if last["diagnosis"] is None else Diagnosis.from_dict(last["diagnosis"])
            self.standing = report if saved["stands"] else None
        self.insight.take_up(report, diagnosis, saved.get("insight_of_version"))
        rows = self._store.get(JUDGED, self._endpoint)
        if rows is not None and (rows["version"], rows["window"]) == (version, self._watcher.windows):
            self._watcher.judged, self._kept_window = unpack_array(rows["x"]), rows["window"]
        self._pending.extend(DriftReport.from_dict(item) for item in saved.get("pending", ()))

    def observe(self, batch: dict[str, Any], now: float) -> None:
        """One batch from one gateway, at ``now`` (wall seconds): what was served, counted, and what each version did.

        What was counted in other bins than those of the version that is watched is left out, and said so in the summary. A
        comparison takes no figures of a batch that began before it did.
        """
        pair = self._compared
        began = -math.inf if pair is None else pair.since if isinstance(pair, Confirming) else pair.began_at
        ours = batch.get("since", math.inf) >= began
        for version, body in batch.get("stats", {}).items():
            known, stats = self._stats.get(int(version), VariantStats()), VariantStats.from_dict(body)
            self._stats[int(version)] = known + stats if ours else known
            self.insight.answered(int(version), stats, now)
        self._rows += batch.get("rows", 0)
        for version, body in batch.get("observed", {}).items():
            if self._watcher is None or int(version) != self._version or body["bins"] != self._watcher.bins.digest:
                self._ignored += body["rows"]
                continue
            self._watcher.take(Observed.from_message(body))
        self._dirty = True

    def step(self, now: float) -> DriftReport | None:
        """Take in labels that came, and give the next window's report when there is one."""
        self._take_outcomes()
        if self._watcher is not None and not self._pending:
            # One report a turn: while some wait, rows gather into larger windows, so that reports never fall behind.
            self._pending.extend(self._watcher.step(now))
        report = self._pending.popleft() if self._pending else None
        if report is not None:
            report = self.insight.look(report, self._newest)
            self._reports.append(self.describe(report))
            self.standing = report
        if self._dirty or report is not None:
            self._save()
        return report

    def examined(self, found: Examination) -> None:
        """A probe of this champion has ended: what stands is diagnosed with what it found."""
        self.insight.examined(found, self.standing, self._newest)
        if self.standing is not None and self._reports:
            self._reports[-1] = self.describe(self.standing)
        self._save()  # before the state that says the probe has answered: it is not asked again

    @property
    def _newest(self) -> NDArray[np.float32]:
        return np.zeros((0, 0), dtype=np.float32) if self._watcher is None else self._watcher.newest

    def answered(self) -> None:
        """A retraining starts: the next one needs a new report and new labels."""
        self.standing, self.labelled = None, 0
        self._save()

    def compare(self, pair: Rollout | Confirming | None) -> None:
        """Which two versions to compare from now on; figures begin at nothing with each new rollout and with each
        provisional promotion, and outlive a crash."""
        self._compared = pair
        name = "" if pair is None else f"{pair.event_id}/{type(pair).__name__}/{pair.champion}"
        if name == self._comparing:
            return
        if self._comparing:
            self._store.drop_shadows(self._endpoint)
        self._comparing, self._stats, self._dirty = name, {}, True

    def comparison(self) -> Comparison:
        """Both versions since the comparison began; of a provisional promotion the challenger is the new champion."""
        pair = self._compared
        assert pair is not None
        old, new = (pair.previous, pair.champion) if isinstance(pair, Confirming) else (pair.champion, pair.challenger)
        none = VariantStats()
        return Comparison(champion=self._stats.get(old, none), challenger=self._stats.get(new, none))

    def describe(self, report: DriftReport) -> dict[str, Any]:
        """The newest report as JSON, with its diagnosis."""
        diagnosis = self.insight.diagnosis
        return {**report.to_dict(), "diagnosis": None if diagnosis is None else diagnosis.to_dict()}

    def summary(self) -> dict[str, Any]:
        """What people see: rows, labels, the last report in a sentence."""
        last = self._reports[-1] if self._reports else None
        text = ""
        if last is not None:
            loss = (
                "no labels yet"
                if last["loss"] is None
                else f"loss {last['loss']:.3f} (reference {last['reference_loss']:.3f})"
            )
            moved = f", moved: {', '.join(last['columns'][:3])}" if last["columns"] else ""
            kind = (last["diagnosis"] or {}).get("kind", "none")
            told = "" if kind == "none" else f", {kind.replace('_', ' ')}"
            text = f"window {last['window']}: severity {last['severity']}{told}, {loss}{moved}"
        counted = {"rows": self._rows, "ignored": self._ignored, "labelled": self.labelled}
        return {**counted, "version": self._version, "text": text, "last": last, **self.insight.summary()}

    def _take_outcomes(self) -> None:
        if self._contract is None:
            return
        outcomes = self._store.outcomes(self._endpoint, self._cursor, limit=20_000)
        if not outcomes:
            return
        self._cursor, self._dirty = outcomes[-1].seq, True
        self.labelled += len(outcomes)
        for version in {outcome.version for outcome in outcomes}:
            mine = [outcome for outcome in outcomes if outcome.version == version]
            losses = self._losses(mine)
            if self._compared is not None:
                self._compare_outcomes(version, mine, losses)
            at = np.array([outcome.served_at for outcome in mine])
            self.insight.ledger.add(version, losses, at)
            if version == self._version and self._watcher is not None:
                self._watcher.add_outcomes(losses, at)

    def _compare_outcomes(self, version: int, mine: Sequence[Outcome], losses: NDArray[np.float64]) -> None:
        """Losses of rows served since the comparison began: before it the two versions did not see the same world."""
        pair = self._compared
        assert pair is not None
        confirming = isinstance(pair, Confirming)
        other = pair.previous if isinstance(pair, Confirming) else pair.challenger
        if version not in (pair.champion, other):
            return
        since = pair.since if isinstance(pair, Confirming) else pair.began_at
        kept = [index for index, outcome in enumerate(mine) if outcome.served_at >= since]
        stats = self._stats.get(version, VariantStats())
        self._stats[version] = stats.with_losses((losses[kept] / self._loss_scale).tolist())
        if version != pair.champion:
            return
        said = self._store.shadow_scores(self._endpoint, other, {mine[index].request_id for index in kept})
        both = [index for index in kept if (mine[index].request_id, mine[index].row_index) in said]
        if not both:
            return
        rows = [mine[index] for index in both]
        copies = self._losses(rows, [said[row.request_id, row.row_index] for row in rows])
        # New minus old: of a rollout the copies are the new version's, of a provisional promotion the old one's.
        gaps = (losses[both] - copies) if confirming else (copies - losses[both])
        new = pair.champion if confirming else other
        self._stats[new] = self._stats.get(new, VariantStats()).with_gaps((gaps / self._loss_scale).tolist())

    def _losses(self, outcomes: Sequence[Outcome], scores: Sequence[float] | None = None) -> NDArray[np.float64]:
        """Losses of the scores that were served, or of others for the same rows."""
        assert self._contract is not None
        y = self._contract.encode_label([outcome.value for outcome in outcomes])
        if scores is None:
            scores = [np.nan if outcome.score is None else outcome.score for outcome in outcomes]
        return row_losses(self._contract.task, y, np.asarray(scores, dtype=float))

    def _load(self, version: int) -> Predictor:
        place = self._store.get("versions", f"{self._endpoint}/{version}") or {}
        folder = Path(self._home) / "cache" / "packages" / place["digest"]
        return Predictor.load(download(self._lake, place["package_key"], folder, place["digest"]))

    def _save(self) -> None:
        body = {
            "cursor": self._cursor,
            "rows": self._rows,
            "ignored": self._ignored,
            "labelled": self.labelled,
            "version": self._version,
            "watcher": self._watcher.state_dict() if self._watcher is not None else None,
            "comparing": self._comparing,
            "stats": {str(version): stats.to_dict() for version, stats in self._stats.items()},
            "insight": self.insight.to_dict(),
            "insight_of_version": self.insight.of_version(),
            "last": self._reports[-1] if self._reports else None,
            "stands": self.standing is not None,
            "pending": [report.to_dict() for report in self._pending],
        }
        # One transaction: gateways that tell what they served wait for the watch's lock meanwhile.
        summary, lease = self.summary(), self._lease
        with self._store.transaction() if lease is None else self._store.fenced(lease) as connection:
            self._store.put_in(connection, "watch", self._endpoint, body)
            self._store.put_in(connection, "monitor", self._endpoint, summary)
            if self._watcher is not None and self._watcher.windows != self._kept_window:
                rows = {
                    "version": self._version,
                    "window": self._watcher.windows,
                    "x": pack_array(self._watcher.judged),
                }
                self._store.put_in(connection, JUDGED, self._endpoint, rows)
                self._kept_window = self._watcher.windows
        self._dirty = False
