"""Files of frames: what is refused before it is painted."""

import pytest
from PIL import Image

from shiftjax.apps.stylize import paint_file
from shiftjax.errors import InputError


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.jpg", "JPEG cannot hold an animation"), ("a.xyz", "written as '.xyz'")],
)
def test_a_format_is_refused_before_frames_are_painted(tmp_path, name, message):
    source = tmp_path / "moving.gif"
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    first.save(source, save_all=True, append_images=[second])
    with pytest.raises(InputError, match=message):
        paint_file(
            lambda _: pytest.fail("a frame was painted"), source, tmp_path / name
        )
