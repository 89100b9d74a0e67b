"""What `maskray prepare` can be asked for: the sources, their settings, and the list of what each holds."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines import decode, storage
from pipelines.datasets import cityscapes, coco, images, nuimages
from pipelines.source_index import Index


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What every kind of source has in common.

    Attributes:
        out: path or URI of the data set to make.
        rows_per_shard: pictures a shard; 256 COCO pictures are about 40 MB.
        max_rejected: largest share of pictures, and of objects, that may be rejected, 0..1; 1.0 accepts any.
        seed: of the order in which pictures are written.
        shuffle: write the pictures in mixed order; else by image id.
        full_decode: decode every picture once to check it; else only its header is read.
        max_pixels: reject pictures of more pixels, by their header.
        address: of a Ray cluster; by default the job's own, or Ray on this machine.
        num_cpus: CPUs to use when Ray is started on this machine; by default all.
    """

    out: str
    rows_per_shard: int = 256
    max_rejected: float = 0.01
    seed: int = 0
    shuffle: bool = True
    full_decode: bool = True
    max_pixels: int = decode.MAX_PIXELS
    address: str | None = None
    num_cpus: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a value is out of its range.
        """
        if self.rows_per_shard < 1:
            raise ValueError(f"rows_per_shard is {self.rows_per_shard}, wanted >= 1: pictures a shard, such as 256")
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"max_rejected is {self.max_rejected}, wanted a share from 0 to 1, such as 0.01")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}, wanted >= 1, such as {decode.MAX_PIXELS}")
        if self.num_cpus is not None and self.num_cpus < 1:
            raise ValueError(f"num_cpus is {self.num_cpus}, wanted >= 1; leave it out to use all")


@dataclass(frozen=True, kw_only=True)
class PrepareCoco(PrepareOptions):
    """Prepare pictures with COCO annotations.

    Attributes:
        images: path or URI of the folder of pictures.
        annotations: path or URI of the COCO JSON file; without annotations in it the pictures count as
            unlabelled.
        semantic: path or URI of the folder of semantic maps, a PNG for each picture with the picture's name (COCO's
            stuffthingmaps); empty for none.
        semantic_classes: values of the maps are below this, or 255 where the class is not known.
    """

    images: str
    annotations: str
    semantic: str = ""
    semantic_classes: int = 183

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a value is out of its range.
        """
        super().__post_init__()
        if not 1 <= self.semantic_classes <= decode.UNKNOWN_CLASS:
            raise ValueError(f"semantic_classes is {self.semantic_classes}, wanted 1 to {decode.UNKNOWN_CLASS}")


@dataclass(frozen=True, kw_only=True)
class PrepareCityscapes(PrepareOptions):
    """Prepare Cityscapes: the eight classes with instances; groups are kept as ignored regions.

    Attributes:
        root: path or URI of the folder that holds leftImg8bit and gtFine.
        split: train, val, or, as pictures without labels, test or train_extra.
        polygons: read the polygons instead of the instance images; both give the same objects.
    """

    root: str
    split: str = "train"
    polygons: bool = False


@dataclass(frozen=True, kw_only=True)
class PrepareNuimages(PrepareOptions):
    """Prepare the key frames of nuImages with the ten classes of the detection benchmark.

    Attributes:
        root: path or URI of the folder that holds `samples` and the folders of tables.
        version: v1.0-mini, v1.0-train, v1.0-val or v1.0-test (unlabelled).
        semantic: make the semantic map of 32 values of each picture too.
    """

    root: str
    version: str = "v1.0-train"
    semantic: bool = True


@dataclass(frozen=True, kw_only=True)
class PrepareImages(PrepareOptions):
    """Prepare bare pictures, unlabelled.

    Attributes:
        images: path or URI of a folder, a glob, or a .txt list of names.
    """

    images: str


PrepareConfig = PrepareCoco | PrepareCityscapes | PrepareNuimages | PrepareImages


def read_index(config: PrepareConfig) -> Index:
    """What the source says it holds.

    Raises:
        ValueError: the source cannot be used; its subclasses say how.
    """
    if isinstance(config, PrepareImages):
        return images.read_index(config.images)
    if isinstance(config, PrepareCityscapes):
        return cityscapes.read_index(config.root, config.split, config.polygons)
    if isinstance(config, PrepareNuimages):
        return nuimages.read_index(config.root, config.version, config.semantic)
    for folder in filter(None, (config.images, config.semantic)):
        filesystem, path = storage.open_uri(folder)
        if not storage.is_folder(filesystem, path):
            raise ValueError(
                f"there is no folder {folder}: give the folder that holds the annotation's pictures or maps"
            )
    return coco.read_index(config.images, config.annotations, config.semantic, config.semantic_classes)
