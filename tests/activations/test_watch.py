"""A watch counts dead ReLU channels in training, warns once with a cause, and leaves the module as it was."""

import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from relu_deploy.activations.watch import DyingReluWarning, UnobservedReluWarning, watch  # noqa: E402


def hooks_of(module):
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules())


def layer(bias, inputs=3, inplace=False):
    """Return a Linear with one unit for each of `bias`, and its ReLU."""
    linear = nn.Linear(inputs, len(bias))
    with torch.no_grad():
        linear.bias.copy_(torch.tensor(bias))
    return nn.Sequential(linear, nn.ReLU(inplace=inplace))


def run(module, batches, inputs=3):
    torch.manual_seed(0)
    for _ in range(batches):
        module(torch.randn(8, inputs))


@pytest.mark.parametrize("inplace", [False, True])
def test_channels_that_did_not_fire_for_patience_batches_are_dead(inplace):
    module = layer([-100.0, 100.0, -100.0, 0.0], inplace=inplace)
    with watch(module, warn=False, patience=5) as watched:
        run(module, 4)
        assert watched.dead() == {"1": 0}
        run(module, 1)
        assert watched.dead() == {"1": 2}
    (found,) = watched.report()
    assert (found.scope, found.channels, found.dead, found.batches, found.share) == ("1", 4, 2, 5, 0.5)


def test_a_channel_that_fires_again_is_alive_again():
    module = layer([-100.0, 1.0])
    with watch(module, warn=False, patience=3) as watched:
        run(module, 5)
        assert watched.dead() == {"1": 1}
        module(torch.full((1, 3), 1.0))
        with torch.no_grad():
            module[0].bias.fill_(100)
        run(module, 1)
        assert watched.dead() == {"1": 0}


def test_batches_in_eval_mode_are_not_counted():
    module = layer([-100.0]).eval()
    with watch(module, patience=1) as watched:
        run(module, 5)
        assert watched.dead() == {"1": 0}
        assert watched.report()[0].batches == 0


def test_the_warning_comes_once_and_names_module_share_and_cause():
    module = layer([-100.0, -100.0, 100.0])
    with pytest.warns(DyingReluWarning) as caught, watch(module, patience=2):
        run(module, 50)
    (warning,) = caught
    text = str(warning.message)
    assert "1: 2 of 3 channels (67%) have not fired for 2 training batches" in text
    assert "large negative biases (median -100 in 0)" in text
    assert warning.filename == __file__


def test_channels_that_died_since_the_last_check_are_reported_when_the_block_ends():
    module = layer([-100.0, 0.0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with watch(module, patience=15):
            run(module, 16)
            assert caught == []
    assert [warning.filename for warning in caught] == [__file__]


def test_there_is_no_warning_below_the_share_or_with_warn_false():
    module = layer([-100.0] + [100.0] * 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watch(module, patience=2, share=0.2):
            run(module, 10)
        with watch(layer([-100.0]), warn=False, patience=2):
            run(module, 10)


def causes(module, inputs):
    with watch(module, warn=False, patience=1) as watched:
        module(inputs)
    return " | ".join(watched.report()[0].causes)


def test_unnormalized_input_is_recognised():
    assert "unnormalized input (its root mean square is 255)" in causes(layer([-1e6]), torch.full((4, 3), 255.0))
    assert "unnormalized" not in causes(layer([-1e6]), torch.ones(4, 3))


def test_a_learning_rate_that_throws_the_weights_is_recognised():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    torch.manual_seed(0)
    with watch(module, warn=False, patience=2) as watched:
        optimizer = torch.optim.SGD(module.parameters(), lr=100.0)
        for _ in range(6):
            optimizer.zero_grad()
            module(torch.randn(32, 3).abs()).square().mean().backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
    (found,) = watched.report()
    assert found.dead > 0
    assert found.causes[0].startswith("learning rate too high (the weights of 0 moved by ")


def test_initialization_and_missing_normalization_are_recognised():
    module = layer([-1e3])
    with torch.no_grad():
        module[0].weight.mul_(1000)
        module[0].bias.fill_(-1e6)
    assert "initialization (0 began at" in causes(module, torch.ones(4, 3))
    normalized = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    with torch.no_grad():
        normalized[1].bias.fill_(-100)
    assert "no normalization" not in causes(normalized, torch.randn(4, 1, 8, 8))
    assert "no normalization between 0 and the ReLU" in causes(layer([-1e3]), torch.ones(4, 3))


class Shared(nn.Module):
    """One ReLU called after two layers of different width, as torchvision's bottlenecks do."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 1), nn.ReLU(inplace=True)
        with torch.no_grad():
            self.first.bias.fill_(10)
            self.second.bias.fill_(-1e3)

    def forward(self, x):
        return self.relu(self.second(self.relu(self.first(x))))


def test_a_module_that_is_called_twice_has_the_channels_of_both_calls():
    module = Shared()
    with watch(module, warn=False, patience=3) as watched:
        for _ in range(4):
            module(torch.randn(16, 1, 4, 4))
    (found,) = watched.report()
    assert (found.scope, found.channels, found.dead, found.batches) == ("relu", 10, 6, 4)


def test_a_part_run_by_itself_is_counted_as_one_call():
    module = nn.Sequential(layer([-100.0, 100.0]), nn.Linear(2, 1))
    with watch(module, warn=False, patience=3) as watched:
        run(module[0], 5)
    assert watched.dead() == {"0.1": 1}
    assert watched.report()[0].batches == 5


def test_features_behind_a_linear_layer_are_the_last_axis():
    module = layer([-100.0, 100.0])
    with watch(module, warn=False, patience=1) as watched:
        module(torch.randn(4, 7, 3))
    assert watched.report()[0].channels == 2


def test_relu6_counts_too_and_functional_relus_are_refused_as_invisible():
    with watch(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU6()), warn=False) as watched:
        assert watched.dead() == {"1": 0}
    with pytest.raises(ValueError, match="functional relus are invisible"), watch(nn.Linear(1, 1)):
        pass


@pytest.mark.parametrize("options", [{"patience": 0}, {"share": 0.0}, {"share": 1.5}])
def test_options_without_sense_are_refused(options):
    with pytest.raises(ValueError, match="patience must be"), watch(layer([0.0]), **options):
        pass


def test_hooks_are_gone_when_the_block_ends_even_with_an_exception():
    module = Shared()
    with watch(module, warn=False):
        assert hooks_of(module) == 3
        module(torch.randn(2, 1, 4, 4))
    assert hooks_of(module) == 0
    with pytest.raises(RuntimeError, match="mine"), watch(module, warn=False):
        raise RuntimeError("mine")
    assert hooks_of(module) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_watching_changes_no_result_and_keeps_no_gradient(dtype):
    torch.manual_seed(0)
    module, images = Shared().to(dtype), torch.randn(4, 1, 5, 5).to(dtype)
    module(images).sum().backward()
    before = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    with watch(module, warn=False, patience=1) as watched:
        module(images).sum().backward()
        assert all(not call.last_fired.requires_grad for record in watched._records.values() for call in record.calls)
    for old, parameter in zip(before, module.parameters(), strict=True):
        assert torch.equal(old, parameter.grad)


class Checkpointed(Shared):
    """The same two calls of one ReLU; the block of both, or only the second, is run again in the backward pass."""

    def __init__(self, part, use_reentrant):
        super().__init__()
        self.part, self.options = part, {"use_reentrant": use_reentrant}

    def block(self, x):
        return self.relu(self.second(self.relu(self.first(x))))

    def tail(self, x):
        return self.relu(self.second(x))

    def forward(self, x):
        if self.part == "block":
            return checkpoint(self.block, x, **self.options)
        return checkpoint(self.tail, self.relu(self.first(x)), **self.options)


@pytest.mark.parametrize(("part", "use_reentrant"), [("block", False), ("block", True), ("tail", False), ("tail", True)])
def test_a_forward_pass_that_checkpointing_repeats_is_the_same_batch(part, use_reentrant):
    module = Checkpointed(part, use_reentrant)
    module.first.bias.data.fill_(-1e3)
    module.second.bias.data.fill_(10)
    with watch(module, warn=False, patience=3) as watched:
        for _ in range(4):
            module(torch.randn(16, 1, 4, 4, requires_grad=True)).sum().backward()
    (found,) = watched.report()
    # The first call's 4 channels never fire, the second's 6 always: calls must not be mixed.
    assert (found.channels, found.dead, found.batches) == (10, 4, 4)


def compiled(module):
    """Return a module whose hooks are not called, as one that torch.compile has compiled before the hooks came."""
    module(torch.randn(2, 3))

    class Compiled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            return torch.relu(self.inner[0](x))

    return Compiled()


def test_training_without_a_visible_forward_pass_is_warned_about_once():
    module = compiled(layer([-100.0, 1.0]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with watch(module, warn=False) as watched:
            for _ in range(3):
                module(torch.randn(4, 3)).sum().backward()
    (warning,) = caught
    assert warning.category is UnobservedReluWarning
    assert "compiled before it is watched" in str(warning.message)
    assert watched.report()[0].batches == 0


def test_the_warning_of_an_unobserved_module_is_not_given_when_forward_passes_are_seen():
    module = layer([-1.0, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watch(module, warn=False):
            module(torch.randn(4, 3)).sum().backward()
    assert all(not parameter._post_accumulate_grad_hooks for parameter in module.parameters())


def test_the_public_name_is_the_context_manager():
    import relu_deploy

    assert relu_deploy.watch is watch
    assert callable(relu_deploy.census)


def test_a_part_that_was_compiled_before_is_named_when_the_block_ends():
    part = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend="eager")
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), part)
    module(torch.ones(2, 4))

    def train():
        with watch(module) as watched:
            for _ in range(3):
                module(torch.randn(2, 4)).sum().backward()
        return watched

    with pytest.warns(UnobservedReluWarning, match=r"which channels of 2\.1 have fired: a part that was compiled") as caught:
        watched = train()
    assert len(caught) == 1
    assert [(one.scope, one.batches) for one in watched.report()] == [("1", 3), ("2.1", 0)]


def test_a_part_that_is_compiled_inside_the_block_or_never_run_is_not_named():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    unused = nn.ReLU()
    module.register_module("unused", nn.Identity())
    module.unused.relu = unused
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnobservedReluWarning)
        with watch(module) as watched:
            module[2].compile(backend="eager")
            for _ in range(3):
                module(torch.randn(2, 4)).sum().backward()
    assert [one.batches for one in watched.report()] == [3, 3, 0]


def test_a_single_row_without_a_batch_has_the_features_of_its_linear_layer():
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    with torch.no_grad():
        module[0].bias[:] = 1e3
        module[0].bias[:2] = -1e3
    with watch(module, patience=4, warn=False) as watched:
        for _ in range(5):
            module(torch.randn(3)).sum().backward()
    assert [(one.channels, one.dead) for one in watched.report()] == [(5, 2)]


def test_gradients_of_torch_func_are_computed_as_without_watching():
    from torch.func import functional_call, grad, vmap

    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1))
    parameters = dict(module.named_parameters())

    def gradients():
        of_one = grad(lambda given, row: functional_call(module, given, (row.unsqueeze(0),)).sum())
        return vmap(of_one, (None, 0))(parameters, torch.arange(12.0).reshape(4, 3))

    expected = gradients()
    with watch(module) as watched:
        for _ in range(12):
            found = gradients()
    assert all(torch.equal(found[name], expected[name]) for name in parameters)
    assert [one.batches for one in watched.report()] == [0]


def test_the_names_of_checkpointed_parts_are_those_of_the_model():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    module = nn.Sequential(checkpoint_wrapper(nn.Sequential(nn.Linear(3, 5), nn.ReLU())), nn.Linear(5, 1))
    with watch(module) as watched:
        module(torch.randn(2, 3)).sum().backward()
    assert [(one.scope, one.batches) for one in watched.report()] == [("0.1", 1)]
