import torch
from torch.utils.flop_counter import FlopCounterMode

from pyro_boltzmann.experiments import bench_flow_maps
from pyro_boltzmann.experiments.bench_flow_maps import flow_map_costs, published_loss
from pyro_boltzmann.transforms import PseudoReversibleFlow


def test_published_loss_is_ours():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = PseudoReversibleFlow(3, hidden_dims=(16, 16)).double()
        x0, y = torch.randn(9, 3).double(), torch.randn(9, 3).double()
    torch.testing.assert_close(published_loss(flow, x0, y), flow.loss(x0, y), rtol=1e-11, atol=0)


def test_the_count_of_operations_is_that_of_torch(monkeypatch):
    monkeypatch.setattr(bench_flow_maps, "WIDTH", 64)
    flow, x0, y = bench_flow_maps._flow(50, 4)

    def in_place(_, left, right, **others):
        return 2 * left[0] * left[1] * right[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        flow.loss(x0, y).backward()
    assert counter.get_total_flops() == bench_flow_maps._flops(50, 4)


def test_rows_of_the_table(monkeypatch):
    monkeypatch.setattr(bench_flow_maps, "WIDTH", 16)
    monkeypatch.setattr(bench_flow_maps, "UPDATE_ROWS", 20)
    monkeypatch.setattr(bench_flow_maps, "OVERHEAD_ROWS", 10)
    monkeypatch.setattr(bench_flow_maps, "FLOW_MAP_REPEATS", 2)
    text = "\n".join(flow_map_costs())
    assert text.count("asked: at most") == 4 and text.count("by matrix products") == 3
