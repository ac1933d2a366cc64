"""The fast run of the tests, `make test-fast`, has the core of every folder in it."""

LEFT_OUT = ("slow", "peers", "browser", "faults")  # by the expression in the Makefile


def test_every_folder_has_tests_without_a_marker(request):
    """Of the tests that this run has collected: in a run of everything, all of them."""
    collected, fast = set(), set()
    for item in request.session.items:
        folder = item.path.parent.name
        collected.add(folder)
        if not any(item.get_closest_marker(name) for name in LEFT_OUT):
            fast.add(folder)
    assert "repository" in fast
    assert fast >= collected - {"faults"}


def test_the_makefile_leaves_out_these(request):
    text = (request.config.rootpath / "Makefile").read_text()
    assert '-m "' + " and ".join(f"not {name}" for name in LEFT_OUT) + '"' in text
