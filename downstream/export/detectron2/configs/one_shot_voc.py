"""One-shot detection on VOC: four classes are held out."""

from downstream.export.detectron2.lazy import configuration

globals().update(
    configuration(
        "one_shot/voc",
        train=["voc:VOCdevkit/VOC2007:trainval"],
        test="voc:VOCdevkit/VOC2007:test",
        images=5011,
    )
)
