"""Pictures in one sheet, with texts below them."""

import numpy as np

from shiftjax.apps.contact_sheet import beside


def test_pictures_side_by_side():
    """The pictures are as they are; there is something written below each."""
    red, blue = np.zeros((2, 48, 64, 3), np.uint8)
    red[..., 0] = blue[..., 2] = 255
    sheet = beside([red, blue], ["a photo", "its style"])
    assert sheet.shape == (48 + 20, 2 * 64 + 8, 3)
    np.testing.assert_array_equal(sheet[:48, :64], red)
    np.testing.assert_array_equal(sheet[:48, 72:], blue)
    assert (sheet[:, 64:72] == 255).all()
    for left in (0, 72):
        assert (sheet[48:, left : left + 64] < 128).any()
