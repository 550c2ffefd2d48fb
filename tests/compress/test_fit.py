"""The training loop of every compression step."""

import pytest
import torch
from torch import nn

from edgegen.compress import _fit
from edgegen.compress._fit import Fit, fit
from edgegen.errors import FormatError, MismatchError

OPTIONS = Fit(steps=25, lr=1e-2, every=5, weight_decay=0.1)


class Killed(RuntimeError):  # noqa: N818
    pass


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def loss_of(net, kill_at=None, poison_at=None):
    """Mean square of the net on inputs that follow from the step."""

    def loss(step):
        if step == kill_at:
            raise Killed
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        value = net(x).square().mean()
        return {"loss": value * (float("nan") if step == poison_at else 1), "twice": 2 * value}

    return loss


def weights(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def test_the_loss_falls_and_the_curve_says_at_which_step():
    mine, said = net(), []
    curve = fit(
        mine,
        list(mine.parameters()),
        loss_of(mine),
        OPTIONS,
        what="recover",
        report=lambda *line: said.append(line),
    )
    assert [row["step"] for row in curve] == [5, 10, 15, 20, 25]
    assert all(row["twice"] == 2 * row["loss"] for row in curve)
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert said[-1] == ("recover", 25, 25)


@pytest.mark.parametrize("killed_at", [3, 12, 24])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, killed_at):
    whole = net()
    wanted = fit(whole, list(whole.parameters()), loss_of(whole), OPTIONS, folder=tmp_path / "a")
    cut = net()
    with pytest.raises(Killed):
        fit(cut, list(cut.parameters()), loss_of(cut, killed_at), OPTIONS, folder=tmp_path / "b")
    again = net()
    curve = fit(again, list(again.parameters()), loss_of(again), OPTIONS, folder=tmp_path / "b")
    assert same(weights(again), weights(whole))
    assert curve == wanted


def test_a_finished_run_is_not_run_again(tmp_path):
    first = net()
    wanted = fit(first, list(first.parameters()), loss_of(first), OPTIONS, folder=tmp_path)
    again = net()
    assert fit(again, list(again.parameters()), loss_of(again, 0), OPTIONS, folder=tmp_path)
    assert same(weights(again), weights(first))
    assert len(wanted) == 5


def test_only_the_given_parameters_are_trained():
    mine = net()
    before = weights(mine)
    fit(mine, list(mine[2].parameters()), loss_of(mine), OPTIONS)
    assert torch.equal(mine[0].weight, before["0.weight"])
    assert not torch.equal(mine[2].weight, before["2.weight"])


def test_a_loss_that_is_no_number_leaves_the_last_good_weights():
    mine, kept = net(), {}

    def loss(step):
        if step == 10:
            kept.update(weights(mine))
        return loss_of(mine, poison_at=12)(step)

    with pytest.raises(MismatchError, match="loss is nan after step 15") as error:
        fit(mine, list(mine.parameters()), loss, OPTIONS)
    assert "smaller" in error.value.hint
    assert same(weights(mine), kept)


def test_a_weight_that_is_no_number_is_found_though_the_last_loss_was_fine():
    mine = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(mine.weight)
    # sqrt has a finite value at 0, and no finite slope
    with pytest.raises(MismatchError, match="weight is not finite after step 1") as error:
        fit(mine, [mine.weight], lambda _: {"loss": mine.weight.sqrt().sum()}, Fit(steps=1))
    assert "smaller lr" in error.value.hint
    assert mine.weight.item() == 0


def test_a_state_of_another_net_is_refused(tmp_path):
    mine, other = net(), nn.Linear(2, 2)
    fit(mine, list(mine.parameters()), loss_of(mine), OPTIONS, folder=tmp_path)
    with pytest.raises(FormatError, match="is of another net") as error:
        fit(other, list(other.parameters()), loss_of(other), OPTIONS, folder=tmp_path)
    assert "rm -r" in error.value.hint


def test_a_torn_state_is_named(tmp_path):
    mine = net()
    fit(mine, list(mine.parameters()), loss_of(mine), OPTIONS, folder=tmp_path)
    file = tmp_path / _fit.STATE
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FormatError, match=_fit.STATE):
        fit(mine, list(mine.parameters()), loss_of(mine), OPTIONS, folder=tmp_path)


def test_a_pace_of_its_own_and_no_decay():
    mine = net()
    first, second = mine[0].weight, mine[2].weight
    began = first.detach().clone()
    fit(mine, [second], loss_of(mine), OPTIONS, paced=[(first, 0.0)])
    assert torch.equal(first, began)
    again = net()
    fit(again, [again[2].weight], loss_of(again), OPTIONS, paced=[(again[0].weight, 1.0)])
    assert not torch.equal(again[0].weight, began)
