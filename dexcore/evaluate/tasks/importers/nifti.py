"""Volumes with masks: a pattern of the images, and what makes a mask's path of an image's."""

import re
from pathlib import Path

from dexcore.evaluate.tasks.importers.options import Imported, Options
from dexcore.evaluate.tasks.layout import Beside, Layout
from dexcore.evaluate.tasks.make import make_task
from dexcore.evaluate.tasks.spec import DrawnSplit, TaskError


def import_nifti(src: Path, out: Path, options: Options) -> Imported:
    """Write the task of pairs of files: NIfTI, NRRD, MetaImage, or pictures.

    Slices keep their volume, its index and their spacing. A volume is a case, unless ``options.case`` says otherwise.

    Raises:
        TaskError: an option is missing, or a mask; or affines, spacings or shapes differ.
    """
    if options.images is None or options.mask is None or not options.classes:
        raise TaskError("pairs need --images GLOB, --mask A=B and --classes NAMES, as --images '*_T2w.nii.gz'")
    image, mask = re.escape(options.mask[0]), options.mask[1].replace("\\", "\\\\")
    layout = Layout(
        said={
            "name": options.name or src.resolve().name,
            "modality": options.modality,
            "kind": options.kind or "segmentation",
            "classes": list(options.classes),
            "mask_values": options.mask_values or None,
            "normalization": options.normalization,
            "units": options.units,
        },
        take=(options.images,),
        masks={"": Beside(re.compile(f"{image}(?!.*{image})"), mask)},  # the last of them
        group=re.compile(options.case or "^.*$"),
        drawn=DrawnSplit("case", None, options.fractions, options.seed),
        axis=options.axis,
    )
    return make_task(layout, src, out)
