"""What only a GPU can show: `pytest -m cuda`. Without one all of it is skipped; what it rests on is tested on the CPU.

Warnings are errors: a graph that is not captured fails here. The kernel has a test of its own, as it needs a compiler.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import engines, graphs, methods, nvjpeg, training
from pipeline.backbone import resolve
from pipeline.commissioning import commission
from pipeline.coreset import _plainly, select
from pipeline.data import Frame, Images
from pipeline.decode import Limits, decode
from pipeline.devices import CPU, beside, sent, staging, to_host
from pipeline.errors import ArtifactError
from pipeline.fastest import on_fastest_engine
from pipeline.inspection import Inspector
from pipeline.maps import smooth
from pipeline.methods.patchcore import PatchCoreConfig, PatchCoreDetector
from pipeline.rounded import RoundedBank, by_fused_kernel, by_product
from pipeline.speed import fit, frames, score
from pipeline.synthetic import draw, encode
from pipeline.view import View
from tests.conformance.pictures import bad, config, good
from tests.pipeline.test_decode import encoded
from tests.pipeline.test_rounded import rand

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA"),
    pytest.mark.filterwarnings("default:the bank is not searched by_fused_kernel"),
]
CUDA = torch.device("cuda")


def pictures(b, side=64, seed=1):
    return torch.randint(0, 256, (b, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def backbone(engine="torch", device="cuda", name="goldline-s"):
    return resolve(name, ("layer2", "layer3"), weights=None, factories=(), engine=engine, device=device)


def apart(ours, truth):
    return float((ours.cpu() - truth.cpu()).norm() / truth.cpu().norm())


@pytest.mark.parametrize("engine", ["torch", "torch-bf16"])
def test_features_agree_with_the_cpus_for_any_number_of_pictures(engine):
    here, there = backbone(engine), backbone(device="cpu")
    for count in (0, 1, 3, 8, 65):
        images = pictures(count)
        made, truth = here(images), there(images)
        for layer, expected in truth.items():
            assert made[layer].shape == expected.shape
            assert made[layer].device.type == "cuda"
            assert count == 0 or apart(made[layer], expected) <= engines._AGREE


def test_graphs_give_what_the_same_calls_give_without():
    engine = backbone("torch-bf16")._engine
    plain = graphs.Replayed(engine._maps, CUDA, graphs.called)
    for count in (1, 5, 64):
        for ours, truth in zip(engine(pictures(count)), plain(pictures(count)), strict=True):
            assert apart(ours, truth) <= 1e-3


def test_a_picture_has_the_same_features_alone_and_in_company():
    net, images = backbone("torch-bf16"), pictures(5)
    together = net(images)
    alone = net(images[3:4])
    assert all(apart(alone[layer][0], together[layer][3]) <= 5e-3 for layer in together)


def test_threads_on_streams_of_their_own_do_not_mix_their_pictures():
    net, wrong = backbone("torch-bf16"), []
    truths = [{k: m.clone() for k, m in net(pictures(3, seed=seed)).items()} for seed in range(4)]
    torch.cuda.synchronize()

    def work(seed):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(30):
                made = net(pictures(3, seed=seed))
                wrong.extend(layer for layer in made if apart(made[layer], truths[seed][layer]) > 1e-3)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))  # what fails in a thread fails here
    assert not wrong


def test_graphs_are_captured_while_another_thread_computes():
    first, stop, done = backbone("torch-bf16"), threading.Event(), []
    first(pictures(1))

    def work():
        while not stop.is_set():
            first(pictures(2))
            done.append(float(torch.full((1000, 1000), 0.5, device=CUDA).sum()))  # a capture forbids random numbers

    thread = threading.Thread(target=work)
    thread.start()
    try:
        second = backbone("torch-bf16")
        made = second(pictures(2))
    finally:
        stop.set()
        thread.join()
    assert done
    assert all(apart(made[layer], truth) <= engines._AGREE for layer, truth in backbone()(pictures(2)).items())


def test_pinned_pictures_are_taken_as_well():
    net, images = backbone("torch-bf16"), pictures(4)
    assert all(torch.equal(a, b) for a, b in zip(net(images.pin_memory()).values(), net(images).values(), strict=True))


def test_the_fastest_engine_is_one_of_the_gpus():
    assert on_fastest_engine(backbone(), (64, 64)).spec.engine in engines.candidates(CUDA)


@pytest.mark.parametrize(("n", "m", "d"), [(1, 129, 8), (70, 300, 72), (784, 16385, 1536), (3, 1, 64)])
def test_the_kernel_gives_the_least_two_of_each_row(n, m, d):
    bank, queries = rand(m, d, 0).half().to(CUDA), rand(n, d, 1).half().to(CUDA)
    norms = bank.float().square().sum(dim=1)
    spreads, lengths = torch.rand(n, device=CUDA), torch.rand(m, device=CUDA)
    least, second, row = by_fused_kernel(queries, bank, norms, spreads, lengths)
    truth = by_product(queries.cpu(), bank.cpu(), norms.cpu(), spreads.cpu(), lengths.cpu())
    torch.testing.assert_close(least.cpu(), truth[0], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(second.cpu(), truth[1], rtol=1e-4, atol=1e-2)
    values = norms - 2 * (queries.double() @ bank.double().T) - spreads.double().outer(lengths.double())
    torch.testing.assert_close(values.gather(1, row.unsqueeze(1))[:, 0].float(), least, rtol=1e-4, atol=1e-2)


def test_queries_beyond_float16_are_searched_in_float32():
    bank = rand(3000, 64, 2)
    queries = 1e6 * rand(20, 64, 3)
    made = RoundedBank.of(bank.to(CUDA))
    rows = made.nearest(queries.to(CUDA))[1].cpu()[:, 0]
    truth = torch.cdist(queries.double(), bank.double())
    torch.testing.assert_close(truth.gather(1, rows.unsqueeze(1))[:, 0], truth.amin(dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("count", [0, 1, 500])
def test_the_search_in_a_bank_is_exact(count):
    bank = rand(3000, 256, 2)
    queries = bank[:count] + 0.3 * rand(count, 256, 3)
    truth = torch.cdist(queries.double(), bank.double()).square()
    for made in (RoundedBank.of(bank.to(CUDA)), RoundedBank(bank.to(CUDA), by_product)):
        squares, rows = made.nearest(queries.to(CUDA))
        assert torch.equal(rows.cpu()[:, 0], truth.argmin(dim=1))
        torch.testing.assert_close(squares.cpu()[:, 0].double(), truth.amin(dim=1), rtol=5e-6, atol=0)


def test_a_coreset_is_the_cpus():
    features = 10 * rand(3000, 96, 4)
    ours, theirs = (set(select(each, 300, seed=0).tolist()) for each in (features.to(CUDA), features))
    assert len(ours & theirs) >= 270  # float16 may turn a near tie, and what follows from it


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("kernel", [True, False])
def test_a_coresets_loop_never_waits(kernel, monkeypatch):
    farthest_in_turn = pytest.importorskip("pipeline.fused_greedy").farthest_in_turn
    monkeypatch.setattr(graphs, "recorded", lambda work, device: work)
    points = (10 * rand(3000, 32, 4)).to(CUDA)
    norms = points.square().sum(dim=1)
    run = partial(farthest_in_turn, points.half()) if kernel else partial(_plainly, points.T.contiguous(), norms)
    run(norms.clone(), 300)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        chosen = run(norms.clone(), 300)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(set(chosen.tolist())) == 300


def test_a_recorded_coreset_is_the_unrecorded_one(monkeypatch):
    farthest_in_turn = pytest.importorskip("pipeline.fused_greedy").farthest_in_turn
    points = rand(5000, 128, 6).half().to(CUDA)
    norms = points.float().square().sum(dim=1)
    recorded = farthest_in_turn(points, norms.clone(), 1000)
    monkeypatch.setattr(graphs, "recorded", lambda work, device: work)
    assert torch.equal(recorded, farthest_in_turn(points, norms.clone(), 1000))


def test_smoothing_and_the_way_to_the_host():
    scores = torch.rand(3, 70, 50)
    assert apart(smooth(scores.to(CUDA), 4.0), smooth(scores, 4.0)) <= 1e-3  # TF32, as torch's convolutions are
    back = to_host(scores.to(CUDA)[:, ::2])
    assert torch.equal(back, scores[:, ::2])


def test_pictures_on_their_way_in_are_pinned_and_what_is_under_way_is_overwritten_by_nobody():
    busy = torch.rand(4000, 4000, device=CUDA)
    torch.cuda.synchronize()
    wrong = []

    def work(seed):
        for k in range(40):
            with beside(CUDA):
                torch.mm(busy, busy)  # the copy that follows on this stream waits for it
            shown = staging((16, 64, 64, 3), CUDA)
            assert shown.is_pinned()
            shown.fill_((seed * 40 + k) % 251)
            there = sent(shown.permute(0, 3, 1, 2), CUDA)
            del shown  # what comes next may have its memory once it was fetched, not before
            staging((16, 64, 64, 3), CUDA).fill_(255)
            wrong.extend([k] if not bool((there == (seed * 40 + k) % 251).all()) else [])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))  # what fails in a thread fails here
    assert not wrong


def test_what_is_made_beside_is_waited_for_and_its_memory_stays_its_own_until_it_was_used():
    busy = torch.rand(4000, 4000, device=CUDA)
    torch.cuda.synchronize()
    for _ in range(20):
        with beside(CUDA) as hand:
            assert torch.cuda.current_stream() != torch.cuda.default_stream()
            torch.mm(busy, busy)  # what is handed over is not there yet when the block ends
            made = hand(torch.full((1 << 22,), 3.0, device=CUDA).mul_(2))
        torch.mm(busy, busy)  # what uses it waits, too, while it is given up and the other stream goes on
        total = made.sum()
        del made
        with beside(CUDA):
            torch.full((1 << 22,), 7.0, device=CUDA)
        assert float(total) == 6 * (1 << 22)


def jpegs(count, size=(300, 200)):
    drawn = [draw("cap", seed=k, size=size).image for k in range(count)]
    kinds = [{"quality": 90}, {"quality": 90, "progressive": True}, {"quality": 95, "subsampling": 0}]
    return [
        Frame(frame_id=str(k), image=encoded(Image.fromarray(image), "JPEG", **kinds[k % 3]))
        for k, image in enumerate(drawn)
    ]


@pytest.mark.parametrize(
    "more", [{}, {"crop": True}, {"keep_aspect": True}, {"even_light": True}, {"tiles": (1, 2)}], ids=str
)
def test_a_gpu_decodes_what_the_same_code_decodes_on_a_cpu(monkeypatch, more):
    view = View(size=(64, 64), resized_by="gpu", **more)
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn = Image.fromarray(draw("cap", seed=9, size=(300, 200)).image)
    others = {
        "grey": encoded(drawn.convert("L"), "JPEG"),
        "turned": encoded(drawn, "JPEG", exif=exif),
        "png": encoded(drawn, "PNG"),
        "long": encoded(drawn.resize((20_000, 100)), "JPEG", quality=90),  # more than CUDA filters in one step
        "large": encoded(drawn.resize((4000, 3000)), "JPEG", quality=90),
    }
    frames = jpegs(7) + [Frame(frame_id=name, image=image) for name, image in others.items()]
    ours = decode([*frames, Frame(frame_id="bad", image=frames[0].image[:-900])], view, Limits(), CUDA)
    monkeypatch.setattr(nvjpeg, "check", lambda device: None)
    theirs = decode(frames, view, Limits(), CPU)
    assert ours.images.pixels.device.type == "cuda"
    assert [each.frame_id for each in ours.failures] == ["bad"]
    assert ours.placements == theirs.placements
    apart = (ours.images.pixels.cpu().float() - theirs.images.pixels.float()).abs()
    assert float(apart.mean()) < 1
    assert float(apart.max()) < 16


def test_of_jpegs_that_a_gpu_decodes_together_the_damaged_one_alone_fails():
    good = jpegs(1)[0].image
    at = good.index(b"\xff\xda")
    damaged = good[: at + 4] + b"\x07" + good[at + 5 :]
    frames = [Frame(frame_id=str(k), image=image) for k, image in enumerate((good, damaged, good))]
    decoded = decode(frames, View(size=(64, 64), resized_by="gpu"), Limits(), CUDA)
    assert decoded.frame_ids == ("0", "2")
    assert [each.frame_id for each in decoded.failures] == ["1"]
    assert torch.equal(decoded.images.pixels[0], decoded.images.pixels[1])


@pytest.mark.parametrize("decoder", ["torch", "gpu"])
def test_batches_at_the_same_time_have_the_verdicts_of_one_after_the_other(decoder):
    view = View(size=(64, 64), resized_by=decoder)
    made = commission(
        jpegs(20), method="patchcore", config=methods.make_config("patchcore", {"coreset": 0.1}), view=view,
        backbone=backbone("torch-bf16"), limits=Limits(), rate=0.1,
    ).inspector  # fmt: skip
    batches = [jpegs(20)[k : k + 1 + k % 5] for k in range(15)]
    truth = [made.inspect(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for ours, theirs in zip(pool.map(made.inspect, batches), truth, strict=True):
                assert ours.verdicts == theirs.verdicts
                assert all(torch.equal(each, theirs.pixels[name]) for name, each in ours.pixels.items())
                assert all(each.device.type == "cpu" for each in ours.pixels.values())


def test_a_model_whose_pictures_a_gpu_decodes_is_refused_by_a_cpu():
    view = View(size=(64, 64), resized_by="gpu")
    made = commission(
        jpegs(20), method="padim", config=methods.make_config("padim", {"dim": 20}), view=view,
        backbone=backbone(), limits=Limits(), rate=0.1,
    ).inspector  # fmt: skip
    with pytest.raises(ArtifactError, match="give it a GPU"):
        Inspector.load(made.save(), open_backbone=lambda spec: backbone(spec.engine, device="cpu"), limits=Limits())


def goods(count, first=0):
    drawn = [draw("cap", seed=first + k, size=(64, 64)).image for k in range(count)]
    return [Frame(frame_id=str(k), image=encode(image)) for k, image in enumerate(drawn)]


@pytest.mark.parametrize("engine", ["torch", "torch-bf16"])
@pytest.mark.parametrize(("method", "config"), [("patchcore", {"coreset": 0.1}), ("padim", {"dim": 40}), ("spade", {})])
def test_verdicts_and_scores_agree_with_the_cpus(method, config, engine):
    made = commission(
        goods(20), method=method, config=methods.make_config(method, config), view=View(size=(64, 64)),
        backbone=backbone(engine), limits=Limits(), rate=0.1,
    ).inspector  # fmt: skip
    there = Inspector.load(made.save(), open_backbone=lambda spec: backbone(spec.engine, device="cpu"), limits=Limits())
    frames = goods(5, first=100)
    ours, theirs = made.inspect(frames), there.inspect(frames)
    assert not ours.failures
    for a, b in zip(ours.verdicts, theirs.verdicts, strict=True):
        assert a.score == pytest.approx(b.score, rel=0.05)
    for name, each in ours.maps.items():
        assert each.device.type == "cpu"
        assert apart(each, theirs.maps[name]) <= 0.05


@pytest.mark.parametrize("engine", ["torch", "torch-bf16"])
@pytest.mark.parametrize("method", ["deep_svdd", "efficientad", "fyd", "mkd", "students"])
def test_methods_that_train_there_tell_defects_and_agree_with_the_cpu(method, engine):
    made = methods.fit(method, Images(good(8)), config(method), backbone=backbone(engine), seed=0)
    assert all(bool(each.isfinite().all()) for each in made.save().tensors.values() if each.is_floating_point())
    there = methods.load(made.save(), backbone=backbone(engine, device="cpu"))
    ours, theirs = (each.score(each.embed(torch.cat([good(2, 5), bad(2)]))) for each in (made, there))
    assert apart(ours.image, theirs.image) <= 0.05
    assert not theirs.map.any() or apart(ours.map, theirs.map) <= 0.05
    assert float(ours.image[2:].min()) > float(ours.image[:2].max())


def test_a_seed_gives_the_same_dropout_there_and_leaves_the_rest_alone():
    torch.cuda.manual_seed_all(1)
    expected = torch.rand(2, device=CUDA)
    torch.cuda.manual_seed_all(1)
    with training.seeded(5):
        first = torch.rand(2, device=CUDA)
    assert torch.equal(torch.rand(2, device=CUDA), expected)
    with training.seeded(5):
        assert torch.equal(torch.rand(2, device=CUDA), first)


def test_a_bank_is_searched_in_float16_and_scores_are_the_plain_searchs():
    net = backbone()
    patches = PatchCoreDetector(rand(9, 384, 5), PatchCoreConfig(), (64, 64), net).embed(pictures(40)).maps["patch"]
    bank = patches.permute(0, 2, 3, 1).reshape(-1, 384)
    detector = PatchCoreDetector(bank, PatchCoreConfig(), (64, 64), net)
    assert isinstance(detector._prepared, RoundedBank)
    made = detector.score(detector.embed(pictures(4, seed=2)))
    detector._prepared = None
    plain = detector.score(detector.embed(pictures(4, seed=2)))
    torch.testing.assert_close(made.image, plain.image, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made.map, plain.map, rtol=1e-4, atol=1e-5)


def test_benchmarks_run_there():
    asked = score.Asked(backbones=["goldline-s"], bank_rows=[60], batches=[1, 2], device="cuda", size=64, repeats=2)
    rows = score.run(asked)
    assert [row.precision for row in rows] == engines.candidates(CUDA) * 2
    assert all(row.ms_per_image > 0 and row.score_error < 1e-3 for row in rows)
    shown = frames.run(frames.Asked(bank_rows=60, batch=4, size=64, size_bytes=3000, device="cuda", repeats=2))
    assert [(row.decode_on, row.at_once) for row in shown] == [("cpu", 1), ("gpu", 1), ("cpu", 2), ("gpu", 2)]
    (fitted,) = fit.run(fit.Asked(backbone="goldline-s", images=12, coreset=0.1, device="cuda", size=64))
    assert fitted.precision == engines.candidates(CUDA)[-1]
    assert np.isfinite([fitted.features_s, fitted.coreset_s]).all()
