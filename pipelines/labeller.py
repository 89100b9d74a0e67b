"""One worker of `predict`: loads the detector once, then turns shards of pictures into shards of predictions."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from model.fold import fold_norms
from model.merge import Merge
from model.views import View, view_hw
from pipelines import checkpoints, commit, host, predictions, storage
from pipelines.config import Precision
from pipelines.dataset import Dataset
from pipelines.decode import DecodeError
from pipelines.inference import Method, cut_batches, decode, predict_sources
from pipelines.looking import Source
from pipelines.making import Account, Making, machine_kind
from pipelines.manifest import FileInfo
from pipelines.predictions import PicturePrediction, PredictionsError


@dataclasses.dataclass(frozen=True)
class Order:
    """What a labeller works on.

    Attributes:
        checkpoint: URI of one checkpoint.
        data: URI of the data set.
        out: URI of the predictions.
        making: how they are made.
        key: what a finished shard must say to be of this run.
        machines: kinds of machine that finished shards were made on; empty where there are none yet.
    """

    checkpoint: str
    data: str
    out: str
    making: Making
    key: dict[str, Any]
    machines: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A finished shard.

    Attributes:
        info: its file.
        account: of its pictures.
        detections: on them.
        machine: that made it.
    """

    info: FileInfo
    account: Account
    detections: int
    machine: str

    @property
    def pictures(self) -> int:
        """All of the shard's."""
        return self.account.labelled + self.account.empty + self.account.rejected

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> "Labelled":
        """The inverse of `dataclasses.asdict`."""
        return cls(FileInfo(**facts["info"]), Account(**facts["account"]), facts["detections"], facts["machine"])


class Labeller:
    """Predicts shards."""

    def __init__(self, order: Order) -> None:
        """Load the detector and fold its norms.

        Raises:
            PredictionsError: shards were made on other kinds of machine than this one.
        """
        making = order.making
        if making.device == "cpu":
            host.set_up(making.threads, making.precision != Precision.FP32.value)
        else:
            torch.set_num_threads(making.threads)
        self._order, self._machine = order, machine_kind(making.device)
        if order.machines and self._machine not in order.machines:
            raise PredictionsError(
                f"{order.out} was begun on {' and '.join(order.machines)}, this worker is {self._machine}: bits would "
                "differ; go on there, or choose another --out"
            )
        self._device = torch.device(making.device)
        self._detector = checkpoints.load_detector(checkpoints.load(order.checkpoint)).to(self._device).eval()
        fold_norms(self._detector)
        self._dataset = Dataset(order.data)
        views = tuple(View(int(text.removesuffix("f")), text.endswith("f")) for text in making.views)
        self._method = Method(views, making.voting_iou, Precision(making.precision), Merge(making.merge))

    def label(self, shard: int) -> dict[str, Any]:
        """Predict one shard and commit it, or find it made by an earlier attempt; the facts of a `Labelled`.

        Raises:
            PredictionsError: a shard of something else has its name.
        """
        made = find_shard(self._order, shard)
        if made is not None:
            return made
        first = int(self._dataset.rows_per_shard[:shard].sum())
        found = self._predict(range(first, first + int(self._dataset.rows_per_shard[shard])))
        rejected = sum(bool(picture.rejected) for picture in found)
        labelled = sum(len(picture.scores) > 0 for picture in found)
        account = Account(labelled, len(found) - labelled - rejected, rejected)
        count = sum(len(picture.scores) for picture in found)
        facts = {"account": dataclasses.asdict(account), "detections": count, "machine": self._machine}
        buffer = predictions.to_ipc(found, {**self._order.key, **facts, "shard": shard})
        filesystem, folder = storage.open_uri(self._order.out)
        name = predictions.shard_name(shard)
        commit.write_file(filesystem, storage.join(folder, name), memoryview(buffer))
        info = FileInfo(name, buffer.size, commit.sha256_of(memoryview(buffer)))
        return {**facts, "info": dataclasses.asdict(info)}

    def _predict(self, rows: range) -> list[PicturePrediction]:
        sizes = [(int(height), int(width)) for height, width in self._dataset.sizes_hw[rows.start : rows.stop]]
        found: dict[int, PicturePrediction] = {}
        for i, reason in enumerate(map(self._unfit, sizes)):
            if reason:
                found[i] = _rejected(self._dataset.record(rows[i]).image_id, sizes[i], reason)
        fit = [i for i in range(len(rows)) if i not in found]
        together = max(1, self._order.making.batch // len(self._method.views))
        batches = [[fit[k] for k in part] for part in
                   cut_batches([sizes[i] for i in fit], self._detector, together)]  # fmt: skip
        for batch, sources in zip(batches, self._decoded(rows, batches), strict=True):
            good = [i for i, source in zip(batch, sources, strict=True) if isinstance(source, Source)]
            pictures = [source for source in sources if isinstance(source, Source)]
            found.update(zip(good, predict_sources(self._detector, pictures, self._device, self._method), strict=True))
            found.update(
                (i, source) for i, source in zip(batch, sources, strict=True) if not isinstance(source, Source)
            )
        return [found[i] for i in range(len(rows))]

    def _unfit(self, size_hw: tuple[int, int]) -> str:
        """Why a picture cannot be looked at in all views; empty where it can."""
        try:
            for view in self._method.views:
                view_hw(*size_hw, view, self._detector.config.picture)
        except ValueError as error:
            return str(error)
        return ""

    def _decoded(self, rows: range, batches: Sequence[Sequence[int]]) -> Iterator[list[Source | PicturePrediction]]:
        """Each batch's pictures, those of the next being decoded while the network sees these."""
        if rows:
            self._dataset.shard(self._dataset.locate(rows.start)[0])  # once, not by each thread
        with ThreadPoolExecutor(self._order.making.threads) as pool:
            ahead: list[Future[Source | PicturePrediction]] = []
            for batch in [*batches, ()]:
                ready, ahead = ahead, [pool.submit(self._decode, rows[i]) for i in batch]
                if ready:
                    yield [future.result() for future in ready]

    def _decode(self, row: int) -> Source | PicturePrediction:
        record = self._dataset.record(row)
        try:
            return decode(record)
        except DecodeError as error:
            return _rejected(record.image_id, (record.height, record.width), str(error))


def _rejected(image_id: int, size_hw: tuple[int, int], reason: str) -> PicturePrediction:
    nothing = np.zeros(0, np.float32)
    return PicturePrediction(
        image_id, *size_hw, np.zeros((0, 4), np.float32), nothing, np.zeros(0, np.int64), None, np.zeros(0, np.int64),
        nothing, nothing, rejected=reason,
    )  # fmt: skip


def find_shard(order: Order, shard: int) -> dict[str, Any] | None:
    """The facts of a finished shard; None where it must be made, a damaged one included.

    Raises:
        PredictionsError: it holds predictions of something else, or made otherwise.
    """
    filesystem, folder = storage.open_uri(order.out)
    path = storage.join(folder, predictions.shard_name(shard))
    found = predictions.read_intact(filesystem, path) if storage.is_file(filesystem, path) else None
    if found is None:
        return None
    facts, info = found
    check_key(order, facts)
    if facts["shard"] != shard:
        return None
    return {name: facts[name] for name in ("account", "detections", "machine")} | {"info": dataclasses.asdict(info)}


def check_key(order: Order, found: dict[str, Any]) -> None:
    """Refuse to mix predictions made of or by different things.

    Raises:
        PredictionsError: they differ; how.
    """
    key = json.loads(json.dumps(order.key))
    if any(found.get(name) != key[name] for name in ("dataset", "checkpoint")):
        raise PredictionsError(f"{order.out} holds predictions of another data set or checkpoint: choose another --out")
    before, now = found.get("making") or {}, key["making"]
    for name in now:
        if before.get(name) != now[name]:
            raise PredictionsError(
                f"{order.out} was begun with {name} {before.get(name)}, now it is {now[name]}: give the same, or "
                "choose another --out"
            )
