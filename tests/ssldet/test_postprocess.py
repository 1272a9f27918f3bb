from dataclasses import replace

import pytest
import torch

from ssldet.class_scores import ClassScores, SigmoidScores, SoftmaxScores
from ssldet.errors import DivergedError
from ssldet.postprocess import answers_of_queries, detections
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


@pytest.mark.parametrize("most", [7, 60, 100])
def test_sigmoids_give_the_best_pairs_of_a_query_and_a_class(most: int) -> None:
    predictions = replace(predict(), scores=SigmoidScores(most_detections=most))
    found = detections(predictions, SIZES)
    for image, (height, width) in enumerate(SIZES.tolist()):
        pairs = [
            (float(predictions.logits[-1, image, query, label].sigmoid()), query, label)
            for query in range(12)
            for label in range(5)
        ]
        wanted = sorted(pairs, reverse=True)[:most]
        assert len(found[image]) == min(most, 60)
        assert found[image].scores.tolist() == pytest.approx([score for score, *_ in wanted])
        assert found[image].labels.tolist() == [label for *_, label in wanted]
        centre = (found[image].boxes[:, :2] + found[image].boxes[:, 2:]) / 2
        queries = [query for _, query, _ in wanted]
        torch.testing.assert_close(
            centre, predictions.boxes[-1, image, queries, :2] * torch.tensor([width, height]), atol=1e-4, rtol=0
        )


def test_tasks_that_ask_each_query_get_one_answer_of_each_whatever_the_head() -> None:
    predictions = predict()
    for one, other in zip(answers_of_queries(predictions, SIZES), detections(predictions, SIZES), strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "scores", "labels"))
    each = answers_of_queries(replace(predictions, scores=SigmoidScores(most_detections=3)), SIZES)
    for image, found in enumerate(each):
        probability = predictions.logits[-1, image].sigmoid()
        assert torch.equal(found.scores, probability.max(-1).values)
        assert torch.equal(found.labels, probability.argmax(-1))


@pytest.mark.parametrize("scores", [SoftmaxScores(), SigmoidScores(most_detections=4)])
@pytest.mark.parametrize("field", ["boxes", "logits"])
def test_a_diverged_model_is_refused(field: str, scores: ClassScores) -> None:
    predictions = replace(predict(), scores=scores)
    getattr(predictions, field)[-1, 1, 3, 0] = torch.nan
    with pytest.raises(DivergedError, match=r"image 1 of the batch \(1 of 2 images\)"):
        detections(predictions, SIZES)


def test_nothing_here_is_differentiated() -> None:
    predictions = predict()
    predictions.boxes.requires_grad_()
    assert not detections(predictions, SIZES)[0].boxes.requires_grad
