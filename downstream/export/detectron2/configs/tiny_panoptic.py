"""Second stage of panoptic segmentation on small images on a CPU."""

from downstream.export.detectron2.lazy import configuration

globals().update(
    configuration(
        "panoptic/tiny",
        train=["panoptic:train.json:train:images"],
        test="panoptic:val.json:val:images",
        images=300,
        device="cpu",
    )
)
