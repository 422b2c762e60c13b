"""The plan of a bundle: what its configs state, each number with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from monai_unet.datasets import cards

__all__ = ["PAPER_2D", "PAPER_3D", "Plan", "Setting", "shipped_plans"]


class Setting(NamedTuple):
    """A value of a config and the comment behind it: where it comes from.

    >>> Setting(10, "§3").why
    '§3'
    """

    value: Any
    why: str


#: Ronneberger, Fischer, Brox 2015
PAPER_2D = {
    "in_channels": Setting(1, "of the images"),
    "features": Setting([64, 128, 256, 512, 1024], "Fig. 1"),
    "norm": Setting(None, 'Fig. 1 has none; "batch" is the 3-D paper\'s'),
    "fix_norm_after": Setting(None, "epochs after which batch norm keeps its statistics, as in prediction; null: none"),
    "dropout": Setting(0.5, "§3.1: at the end of the contracting path; the rate is the Caffe release's"),
    "tile_size": Setting(388, "Fig. 1: output pixels per axis; the input tile is 572 × 572"),
    "learning_rate": Setting(0.001, "not in the paper"),
    "momentum": Setting(0.99, '§3: "a high momentum (0.99)"'),
    "batch_size": Setting(1, '§3: "reduce the batch to a single image"'),
    "max_epochs": Setting(60, "not in the paper: 30,000 steps, about its 10 hours on a Titan"),
    "steps_per_epoch": Setting(500, "training steps"),
    "val_interval": Setting(2, "epochs"),
    "validation_items": Setting(2, 'the last items of "training", held out to choose the best checkpoint'),
    "seed": Setting(0, "of all random draws"),
    "w0": Setting(10, "§3"),
    "sigma_border": Setting(5, '§3: "σ ≈ 5 pixels"'),
    "class_weights": Setting("balanced", '§3: "to balance the class frequencies"; its formula is not in the paper'),
    "elastic_grid": Setting(3, '"a coarse 3 by 3 grid"'),
    "elastic_sigma": Setting(10, '"10 pixels standard deviation"'),
    "rotate_range": Setting("$np.pi", '"shift and rotation invariance": any angle; its range is not in the paper'),
    "flip_prob": Setting(0.5, "mirroring: not in the paper"),
    "gray_scale": Setting(0.2, '"gray value variations": their size is not in the paper'),
    "gray_shift": Setting(0.2, "likewise"),
}

#: Çiçek, Abdulkadir, Lienkamp, Brox, Ronneberger 2016
PAPER_3D = {
    "in_channels": Setting(1, "of the images"),
    "features": Setting(
        [64, 128, 256, 512], "Fig. 2, where the first convolution of a level has half as many channels"
    ),
    "norm": Setting("batch", "§2: before each ReLU; null: none, as in 2015"),
    "fix_norm_after": Setting(None, "epochs after which batch norm keeps its statistics, as in prediction; null: none"),
    "dropout": Setting(0, "none in the paper"),
    "tile_size": Setting([44, 44, 28], "§2: output voxels per axis; the input tile is 132 × 132 × 116"),
    "learning_rate": Setting(0.001, "not in the paper"),
    "momentum": Setting(0.99, "not in the paper; §3 of the 2015 one"),
    "batch_size": Setting(1, '§2: "a batch size of one"'),
    "max_epochs": Setting(140, "§3: 70,000 steps, 3 days on a Titan X"),
    "steps_per_epoch": Setting(500, "training steps"),
    "val_interval": Setting(2, "epochs"),
    "seed": Setting(0, "of all random draws"),
    "elastic_grid": Setting(5, '"a grid with a spacing of 32 voxels": 5 nodes on 132 voxels'),
    "elastic_sigma": Setting(4, '"standard deviation of 4" voxels'),
    "rotate_range": Setting(0.26, 'radians about each axis, 15°; "rotation": its range is not in the paper'),
    "scale_range": Setting(0.1, '"scaling": its range is not in the paper'),
    "flip_prob": Setting(0, "mirroring: not in the paper"),
    "gray_scale": Setting(0.2, '"gray value augmentation": its size is not in the paper'),
    "gray_shift": Setting(0.2, "likewise"),
}

CITING = {
    2: '"§", "Fig." and "Eq." cite the paper; "not in the paper" marks what it leaves open.',
    3: '"§" and "Fig." cite that paper; "not in the paper" marks what it leaves open.',
}


@dataclass(frozen=True)
class Plan:
    """What a bundle is made for, and the settings of its training; the templates are written from it.

    Args:
        name: of the bundle.
        kind: "instances" or "classes".
        dims: spatial dimensions of the network.
        volumes: whether images are NIfTI, NRRD or DICOM; else PNG, TIFF and what else microscopes write.
        channel_names: of the image.
        class_names: of the labels' values, background first.
        modality: "CT", "MR", "microscopy" …
        settings: options of train.yaml by name; those not here are not in the config.
        compact: what compact.yaml sets; none: there is no such file.
        membranes: classes whose 4-connected components are weighted and scored as in the ISBI 2012 challenge, page by
            page of a stack.
        colour: whether three channels are red, green and blue.
        masks: labels of two classes are stored as 0 and 255.
        sparse: parts of the images may be not labelled.
        components: the instances are the connected components of masks.
        values: of these masks.
        card: of the data set that the bundle is shipped for.
        thing: what an object is called.
        things: several of them.
        dataset_dir: default of the option, an expression or a path.
        split: list that the evaluation scores.
        reach: see inference_large.yaml.
        subject: what the network is trained on, for the first line of train.yaml.
        metadata: entries of metadata.json.
        why: the labels are of this kind.

    >>> Plan("mine", "instances", 2, False, ["image"], ["background", "cell"], "microscopy", PAPER_2D).metric
    'seg'
    """

    name: str
    kind: str
    dims: int
    volumes: bool
    channel_names: Sequence[str]
    class_names: Sequence[str]
    modality: str
    settings: Mapping[str, Setting]
    compact: Mapping[str, Setting] = field(default_factory=dict)
    membranes: bool = False
    colour: bool = False
    masks: bool = False
    sparse: bool = False
    components: bool = False
    values: Sequence[int] = ()
    card: str | None = None
    thing: str = "object"
    things: str = "objects"
    dataset_dir: str = "$@bundle_root + '/data'"
    split: str = "test"
    reach: int = 512
    subject: str = "images of its own"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""

    @property
    def instances(self) -> bool:
        """Whether objects are told apart."""
        return self.kind == "instances"

    @property
    def undoes_weights(self) -> bool:
        """Whether the loss undoes the class weights; not for instances: the border term of Eq. 2 balances them."""
        return not self.card and not self.instances

    @property
    def object_classes(self) -> int:
        """How many classes the objects are of, 0 if they are not told apart."""
        return len(self.class_names) - 1 if self.instances else 0

    @property
    def ids(self) -> str:
        """How the ids say the class of an object, where there are several classes."""
        if self.object_classes < 2:
            return ""
        names = ", ".join(f"{number} {name}" for number, name in enumerate(self.class_names[1:], 1))
        return f"; class c has the ids c, c + {self.object_classes} …: {names}"

    @property
    def weight_map(self) -> bool:
        """Whether the loss is weighted by Eq. 2."""
        return self.instances or self.membranes

    @property
    def per_class(self) -> bool:
        """Whether scores are reported class by class, too."""
        return not self.weight_map and len(self.class_names) > 2

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return len(self.channel_names)

    @property
    def label_values(self) -> list[int]:
        """Values that a label of classes may hold: 255 is not labelled."""
        return [*range(len(self.class_names)), *([255] if self.sparse else [])]

    @property
    def image(self) -> str:
        """What an image is called."""
        return "volume" if self.volumes else "image"

    @property
    def metric(self) -> str:
        """The score that chooses the checkpoint."""
        return "rand_error" if self.membranes else "seg" if self.instances else "dice"

    @property
    def citing(self) -> str:
        """How the comments cite."""
        return CITING[self.dims]

    def has(self, names: str) -> bool:
        """Whether one of the options is set."""
        return any(name in self.settings for name in names.split())


def shipped_plans() -> dict[str, Plan]:
    """Plan the shipped bundles: the paper's settings, and what the cards of their data sets fix beyond them.

    >>> shipped_plans()["em_membrane_segmentation"].settings["features"]
    Setting(value=[64, 128, 256, 512, 1024], why='Fig. 1')
    """
    plans = {}
    for card in cards().values():
        if "bundle" in card:
            about = dict(card["bundle"])
            fixed, compact = (
                {name: Setting(*setting) for name, setting in about.pop(block).items()}
                for block in ("settings", "compact")
            )
            paper = PAPER_3D if about["dims"] == 3 else PAPER_2D
            settings = {name: setting for name, setting in {**paper, **fixed}.items() if setting.value != "none"}
            folder = f"$str(datasets.default_folder({card['name']!r}))"
            plan = Plan(**about, settings=settings, compact=compact, dataset_dir=folder, card=card["name"])
            plans[plan.name] = plan
    return plans
