import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from ssldet.boxes import (
    cxcywh_to_xyxy,
    elementwise_giou,
    elementwise_iou,
    pairwise_giou,
    pairwise_iou,
    to_absolute,
    to_normalised,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

fractions = st.floats(0, 1, width=32)


def some_boxes(count: int) -> Tensor:
    return cxcywh_to_xyxy(torch.rand(count, 4) * 0.5 + 0.1)


def test_formats_by_hand() -> None:
    corners = torch.tensor([[0.1, 0.2, 0.5, 0.8]])
    centred = torch.tensor([[0.3, 0.5, 0.4, 0.6]])
    torch.testing.assert_close(xyxy_to_cxcywh(corners), centred)
    torch.testing.assert_close(cxcywh_to_xyxy(centred), corners)


def test_the_edge_of_the_house_is_in_pixels_of_height_and_width() -> None:
    absolute = to_absolute(torch.tensor([[0.5, 0.5, 0.5, 1.0]]), (40, 100))
    torch.testing.assert_close(absolute, torch.tensor([[25.0, 0.0, 75.0, 40.0]]))


@given(st.tuples(fractions, fractions, fractions, fractions), st.integers(1, 4000), st.integers(1, 4000))
def test_pixels_and_fractions_are_inverse(values: tuple[float, ...], height: int, width: int) -> None:
    boxes = torch.tensor([values])
    back = to_normalised(to_absolute(boxes, (height, width)), (height, width))
    torch.testing.assert_close(back, boxes, atol=1e-5, rtol=1e-5)


def test_overlaps_are_torchvisions_where_boxes_have_area() -> None:
    a, b = some_boxes(5), some_boxes(3)
    torch.testing.assert_close(pairwise_iou(a, b), box_iou(a, b))
    torch.testing.assert_close(pairwise_giou(a, b), generalized_box_iou(a, b))
    torch.testing.assert_close(elementwise_iou(a[:3], b), box_iou(a, b).diagonal())
    torch.testing.assert_close(elementwise_giou(a[:3], b), generalized_box_iou(a, b).diagonal())


def test_all_pairs_give_bit_by_bit_what_single_pairs_give() -> None:
    a, b = some_boxes(60).view(3, 2, 10, 4), some_boxes(14).view(2, 7, 4)
    a[0, 0, :3], b[1, -2:] = a[0, 0, 3], 0.0
    a[1, 1, 4, 2:] = a[1, 1, 4, :2]
    pairs = a.unsqueeze(-2).expand(3, 2, 10, 7, 4), b.unsqueeze(-3).expand(3, 2, 10, 7, 4)
    assert torch.equal(pairwise_iou(a, b), elementwise_iou(*pairs))
    assert torch.equal(pairwise_giou(a, b), elementwise_giou(*pairs))


def test_pairs_are_made_within_each_leading_axis_and_shared_where_it_is_one() -> None:
    a, b = some_boxes(30).view(3, 2, 5, 4), some_boxes(8).view(1, 2, 4, 4)
    together = pairwise_giou(a, b)
    assert together.shape == (3, 2, 5, 4)
    torch.testing.assert_close(together[2, 1], generalized_box_iou(a[2, 1], b[0, 1]))


@settings(max_examples=60)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1e-7, 0.3, 0.3000001, 1.0])] * 4), min_size=2, max_size=2))
def test_boxes_without_area_give_finite_overlaps_and_gradients(pair: list[tuple[float, ...]]) -> None:
    a, b = (torch.tensor([values], requires_grad=True) for values in pair)
    iou, giou = elementwise_iou(a, b), elementwise_giou(a, b)
    (iou + giou).sum().backward()
    assert (iou >= 0).all()
    assert (iou <= 1).all()
    assert (giou >= -1).all()
    assert (giou <= 1).all()
    assert a.grad is not None
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("size", [(480, 640), (1, 7)])
def test_overlap_does_not_depend_on_the_unit(size: tuple[int, int]) -> None:
    centred_a, centred_b = xyxy_to_cxcywh(some_boxes(4)), xyxy_to_cxcywh(some_boxes(4))
    in_pixels = elementwise_giou(to_absolute(centred_a, size), to_absolute(centred_b, size))
    in_fractions = elementwise_giou(cxcywh_to_xyxy(centred_a), cxcywh_to_xyxy(centred_b))
    torch.testing.assert_close(in_pixels, in_fractions, atol=1e-5, rtol=1e-4)


def test_corners_become_corner_and_size() -> None:
    assert xyxy_to_xywh(torch.tensor([[2.0, 3.0, 7.0, 14.0]])).tolist() == [[2.0, 3.0, 5.0, 11.0]]
