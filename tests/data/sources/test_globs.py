import pytest

from dexcore.data.sources.globs import matcher


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.png", ["a.png", "x/y/a.png"], ["a.png.txt", "a.PNG"]),
        ("images/*.png", ["images/a.png"], ["a.png", "images/x/a.png", "more/images/a.png"]),
        ("**/images/*.png", ["images/a.png", "x/y/images/a.png"], ["images/x/a.png"]),
        ("masks/**", ["masks/a", "masks/b/c.png"], ["masks", "xmasks/a"]),
        ("{train,val}/?.png", ["train/a.png", "val/b.png"], ["test/a.png", "train/ab.png"]),
        ("s[0-9]*/mri.nii.gz", ["s01/mri.nii.gz"], ["sx/mri.nii.gz", "s01/mriXniiXgz"]),
        ("Projection[ ]Maps/OCT(FULL)/*.bmp", ["Projection Maps/OCT(FULL)/1.bmp"], ["Projection Maps/OCTFULL/1.bmp"]),
        ("[!0-9]*", ["a1"], ["1a"]),
        ("a b.c+d$", ["a b.c+d$", "x/a b.c+d$"], ["a bxc+d$", "a b.c+d"]),
    ],
)
def test_globs(pattern, matching, others):
    matches = matcher([pattern])
    assert [path for path in [*matching, *others] if matches(path)] == matching


def test_a_broken_glob_is_told():
    with pytest.raises(ValueError, match=r"'\{a' is no pattern"):
        matcher(["{a"])
