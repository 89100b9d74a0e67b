"""What the distill command is told."""

import dataclasses
import enum

from pipelines import storage
from pipelines.pseudo_labels import Weight


class Leaked(enum.Enum):
    """What to do with pictures of the pool that are labelled or validation pictures."""

    REFUSE = "refuse"
    LEAVE_OUT = "leave_out"


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Choose pseudo-labels and write them as a data set that `maskray train` takes.

    Attributes:
        predictions: what `maskray predict` made on the pool.
        pool: prepared data set of unlabelled pictures.
        labelled: prepared data set the detector was trained on; its objects a picture set how many are kept.
        out: folder or URI of the pseudo-labelled data set.
        val: prepared data set the student will be measured on, so that none of its pictures is in the pool.
        teacher: checkpoint or training run that predicted; keeps the chain of where labels come from, and leaves the
            pictures it held out of the labelled rate.
        audit: label the pictures that the teacher held out, and report how good labels are at the thresholds used.
        min_score: detections below are never kept, whatever the rule says.
        max_score: detections from here on are always kept; 1 leaves it to the rule.
        uncertain: share of a class's threshold from which detections that are not kept become regions that the
            student learns nothing from, instead of background; 1 for none.
        weight: weight of a pseudo-label's losses: one, or its score.
        min_keypoint_score: keypoints whose heat map's peak is below are not visible to the student.
        keep_empty: keep pictures without any kept object, as pictures without objects.
        leaked: refuse a pool with labelled or validation pictures, or leave these out.
        coco: write instances.json and results.json too, by one process; leave out for pools of millions.
        review: pictures to export for people to look at, those with the least certain labels first.
        review_prefix: what Label Studio puts before a picture's file name to find it.
        address: Ray cluster to use; empty starts one on this machine.
    """

    predictions: str
    pool: str
    labelled: str
    out: str
    val: str = ""
    teacher: str = ""
    audit: bool = False
    min_score: float = 0.3
    max_score: float = 1.0
    uncertain: float = 0.5
    weight: Weight = Weight.ONE
    min_keypoint_score: float = 0.0
    keep_empty: bool = False
    leaked: Leaked = Leaked.REFUSE
    coco: bool = True
    review: int = 0
    review_prefix: str = "/data/local-files/?d=data/"
    address: str = ""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.min_score <= self.max_score <= 1:
            raise ValueError(
                f"distill needs 0 <= min-score <= max-score <= 1, got {self.min_score} and {self.max_score}"
            )
        if not 0 < self.uncertain <= 1:
            raise ValueError(f"distill needs 0 < uncertain <= 1, got {self.uncertain}: 1 for no uncertain labels")
        if self.review < 0:
            raise ValueError(f"distill needs review >= 0, got {self.review}")
        if self.audit and not self.teacher:
            raise ValueError("distill --audit needs --teacher: the checkpoint or run that predicted, which held out")

    def with_full_places(self) -> "DistillConfig":
        """Every path written out: tasks run in other folders, and on other machines."""

        def full(uri: str) -> str:
            return storage.canonical_uri(uri) if uri else ""

        return dataclasses.replace(
            self,
            predictions=full(self.predictions),
            pool=full(self.pool),
            labelled=full(self.labelled),
            out=full(self.out),
            val=full(self.val),
            teacher=full(self.teacher),
        )
