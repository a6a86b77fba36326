import pytest

from pyro_nri.posterior.same_recordings import check_recordings
from pyro_nri.scenes.simulate import simulate


@pytest.fixture
def scenes():
    return simulate("springs", 3, num_entities=3, num_frames=20, seed=0)


def test_windows_of_one_recording(make_tree, scenes):
    tree = make_tree(scenes=scenes.frames(5, 15), first_frame=5)
    for first, last in ((0, 20), (0, 8), (10, 20), (15, 20)):
        check_recordings(tree, scenes.frames(first, last), first)
    others = simulate("springs", 3, num_entities=3, num_frames=20, seed=1)
    check_recordings(tree, others.frames(0, 5))  # no frame in common says nothing
    with pytest.raises(ValueError, match="scene '0' moves otherwise than in the posterior"):
        check_recordings(tree, others.frames(8, 20), 8)


def test_other_scenes_of_the_same_names(make_tree, scenes):
    others = simulate("springs", 3, num_entities=3, num_frames=20, seed=1)
    with pytest.raises(ValueError, match="these are two scenes of one name"):
        check_recordings(make_tree(scenes=scenes), others)
