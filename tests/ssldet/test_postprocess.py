import pytest
import torch

from ssldet.errors import DivergedError
from ssldet.postprocess import detections
from ssldet.types import Predictions

SIZES = torch.tensor([[40, 100], [33, 21]])


def predict() -> Predictions:
    return Predictions(logits=torch.randn(3, 2, 12, 5), boxes=torch.rand(3, 2, 12, 4), states=torch.zeros(3, 2, 12, 2))


def test_every_query_of_the_last_layer_is_one_detection() -> None:
    predictions = predict()
    found = detections(predictions, SIZES)
    assert [len(each) for each in found] == [12, 12]
    probability = predictions.logits[-1].softmax(-1)
    for image in range(2):
        for query in range(12):
            label = int(found[image].labels[query])
            assert label == int(probability[image, query, :4].argmax())
            assert found[image].scores[query].item() == pytest.approx(probability[image, query, label].item())


def test_boxes_are_pixels_of_the_image_on_disk() -> None:
    predictions = predict()
    predictions.boxes[-1, 0, 7] = torch.tensor([0.5, 0.5, 0.2, 1.0])
    predictions.boxes[-1, 1, 2] = torch.tensor([0.0, 0.5, 0.2, 1.0])
    first, second = detections(predictions, SIZES)
    torch.testing.assert_close(first.boxes[7], torch.tensor([40.0, 0.0, 60.0, 40.0]))
    torch.testing.assert_close(second.boxes[2], torch.tensor([-2.1, 0.0, 2.1, 33.0]))


def test_a_likely_no_object_makes_a_low_score_not_a_missing_detection() -> None:
    predictions = predict()
    predictions.logits[..., -1] = 50
    (first, _) = detections(predictions, SIZES)
    assert len(first) == 12
    assert first.scores.max() < 1e-6
    assert first.labels.max() < 4


@pytest.mark.parametrize("field", ["boxes", "logits"])
def test_a_diverged_model_is_refused(field: str) -> None:
    predictions = predict()
    getattr(predictions, field)[-1, 1, 3, 0] = torch.nan
    with pytest.raises(DivergedError, match=r"image 1 of the batch \(1 of 2 images\)"):
        detections(predictions, SIZES)


def test_nothing_here_is_differentiated() -> None:
    predictions = predict()
    predictions.boxes.requires_grad_()
    assert not detections(predictions, SIZES)[0].boxes.requires_grad
