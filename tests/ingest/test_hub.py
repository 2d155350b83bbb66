"""The hub, over HTTP on loopback: only what is needed is fetched, and refusals are one line."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load, save

from scopelake import tiny

REPO = "google/gemma-scope-2-1b-it"
FOLDER = "resid_post_all/layer_1_width_1024_l0_small"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_examples_are_fetched_without_weights(hub):
    code = (
        f"from scopelake.ingest import find_coders\nfind_coders.find_examples(['{REPO}/{FOLDER}'])"
    )
    done = hub("-c", code)
    assert "is no whole safetensors file" in done.stderr.splitlines()[-1]
    assert sorted(hub.server.fetched) == [f"{FOLDER}/config.json", f"{FOLDER}/examples.safetensors"]


def test_a_repository_is_listed_without_fetching(hub):
    done = hub("-m", "scopelake", "saes", REPO, "--json")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    assert [row["sae"] for row in listed["saes"]] == [FOLDER]
    assert listed["repo"] == REPO
    assert hub.server.fetched == []


def test_without_a_repository_what_is_on_this_machine_is_listed(hub):
    code = f"from scopelake.ingest.find_coders import find_coders\nfind_coders(['{REPO}/{FOLDER}'])"
    assert hub("-c", code).returncode == 0
    done = hub("-m", "scopelake", "saes", "--json")
    assert done.returncode == 0, done.stderr
    bundled, cached = map(json.loads, done.stdout.splitlines())
    assert (bundled["repo"], len(bundled["saes"])) == (tiny.CODERS_REPO, 14)
    assert (cached["repo"], [row["sae"] for row in cached["saes"]]) == (REPO, [FOLDER])
    table = hub("-m", "scopelake", "saes").stdout
    assert f"14 SAEs in {tiny.CODERS_REPO}" in table
    assert f"1 SAE in {REPO}" in table


@pytest.mark.parametrize(
    "spec", [f"/{FOLDER}", "/resid_post_all/*_width_1024_l0_small", f"@v2/{FOLDER}"]
)
def test_only_what_encoding_needs_is_fetched_and_only_once(hub, spec):
    code = (
        "from scopelake.ingest.find_coders import find_coders\n"
        f"(coder,) = find_coders(['{REPO}{spec}'])\n"
        "print(coder.name, coder.width)"
    )
    for _ in range(2):
        done = hub("-c", code)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [f"gemma-scope-2-1b-it/{FOLDER}", "1024"]
    assert sorted(hub.server.fetched) == [f"{FOLDER}/config.json", f"{FOLDER}/params.safetensors"]


@pytest.mark.parametrize("inner", [FOLDER, "resid_post_all/*_width_1024_l0_small"])
def test_a_revision_may_have_slashes(hub, inner):
    code = (
        "from scopelake.ingest.find_coders import find_coders\n"
        f"(coder,) = find_coders(['{REPO}@refs/pr/1/{inner}'])\n"
        "print(coder.name)"
    )
    done = hub("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"gemma-scope-2-1b-it/{FOLDER}"]
    assert hub.server.resolved == {"refs/pr/1"}
    listed = hub("-m", "scopelake", "saes", f"{REPO}@refs/pr/1", "--json")
    assert json.loads(listed.stdout)["repo"] == REPO


def test_a_download_that_breaks_off_leaves_what_was_whole(hub):
    hub.server.cut = "params.safetensors"
    code = f"from scopelake.ingest.find_coders import find_coders\nfind_coders(['{REPO}/{FOLDER}'])"
    broken = hub("-c", code)
    assert "params.safetensors was asked for; the hub did not give it" in broken.stderr
    assert hub.server.fetched.count(f"{FOLDER}/config.json") == 1
    hub.server.cut, hub.server.fetched[:] = "nothing", []
    done = hub("-c", code)
    assert done.returncode == 0, done.stderr
    assert hub.server.fetched == [f"{FOLDER}/params.safetensors"]


PARAMS = f"{FOLDER}/params.safetensors"
LARGE = (
    "from scopelake.ingest import download\ndownload.LARGE_BYTES = 100_000\n"
    "from scopelake.ingest.find_coders import find_coders\n"
    f"(coder,) = find_coders(['{REPO}/{FOLDER}'])\n"
    "print(coder.width)"
)


def partials(tmp_path):
    return sorted(tmp_path.glob("hf/hub/*/blobs/*.scopelake-partial"))


def test_a_large_download_goes_on_where_the_connection_broke(hub, tmp_path):
    hub.server.cut, hub.server.cut_after = "params.safetensors", 400_000
    done = hub("-c", LARGE)
    assert done.returncode == 0, done.stderr
    # Several answers, and no byte sent twice.
    assert hub.server.sent[PARAMS] == len(hub.server.files[PARAMS])
    assert hub.server.fetched.count(PARAMS) == -(-len(hub.server.files[PARAMS]) // 400_000)
    assert partials(tmp_path) == []


def test_a_large_download_goes_on_after_its_process_was_killed(hub, tmp_path):
    n_bytes = len(hub.server.files[PARAMS])
    hub.server.cut, hub.server.cut_after, hub.server.hangs = (
        "params.safetensors",
        n_bytes // 2,
        True,
    )
    killed = subprocess.Popen([sys.executable, "-P", "-c", LARGE], env=hub.environment)
    assert hub.server.reached.wait(30)
    while not (found := partials(tmp_path)) or found[0].stat().st_size < n_bytes // 2:
        time.sleep(0.05)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    hub.server.released.set()
    hub.server.cut, hub.server.sent = "nothing", {}
    done = hub("-c", LARGE)
    assert done.returncode == 0, done.stderr
    assert hub.server.sent[PARAMS] == n_bytes - n_bytes // 2
    assert partials(tmp_path) == []
    assert hub("-c", LARGE).returncode == 0
    assert hub.server.sent[PARAMS] == n_bytes - n_bytes // 2


def test_two_processes_download_a_large_file_once(hub):
    both = [subprocess.Popen([sys.executable, "-P", "-c", LARGE], env=hub.environment)
            for _ in range(2)]  # fmt: skip
    assert [process.wait() for process in both] == [0, 0]
    assert hub.server.sent[PARAMS] == len(hub.server.files[PARAMS])


def test_a_large_download_of_other_bytes_is_refused_and_deleted(hub, tmp_path):
    hub.server.lies = {PARAMS: hub.server.files[PARAMS][::-1]}
    done = hub("-c", LARGE)
    assert "the hub did not give it (its bytes have the sha256" in done.stderr.splitlines()[-1]
    assert partials(tmp_path) == []
    hub.server.lies = {}
    assert hub("-c", LARGE).returncode == 0


def test_a_server_without_ranges_is_left_to_the_library(hub, tmp_path):
    hub.server.has_ranges = False
    done = hub("-c", LARGE)
    assert done.returncode == 0, done.stderr
    assert "the server sends no parts of files" in done.stderr
    assert partials(tmp_path) == []


OTHER = (
    "from scopelake.ingest import download\ndownload.LARGE_BYTES = 100_000\n"
    "from scopelake.ingest.find_coders import find_coders\n"
    "find_coders(['{}'], '{}')"
)


@pytest.mark.parametrize("has_config", [True, False])
def test_a_coder_of_another_model_is_refused_before_its_weights_come(hub, tmp_path, has_config):
    if not has_config:
        del hub.server.files[f"{FOLDER}/config.json"]
    local = tmp_path / REPO.split("/")[1] / FOLDER
    local.mkdir(parents=True)
    for name, data in hub.server.files.items():
        if name.startswith(FOLDER):
            (local / name.rsplit("/", 1)[1]).write_bytes(data)
    refusals = [
        hub("-c", OTHER.format(spec, "google/gemma-3-1b-pt")).stderr.splitlines()[-1]
        for spec in (f"{REPO}/{FOLDER}", local)
    ]
    trained_on = tiny.MODEL_NAME if has_config else "gemma-3-1b-it"
    assert f"{FOLDER} was trained on {trained_on}; the model given is google/" in refusals[0]
    assert refusals[0] == refusals[1]
    assert hub.server.fetched == [f"{FOLDER}/config.json"] * has_config


def test_weights_that_are_no_coders_are_refused_by_their_header(hub, tmp_path):
    tensors = load(hub.server.files[PARAMS])
    hub.server.files[PARAMS] = save({k: v for k, v in tensors.items() if k != "threshold"})
    done = hub("-c", OTHER.format(f"{REPO}/{FOLDER}", tiny.MODEL_NAME))
    assert "and lacks threshold; use a JumpReLU coder" in done.stderr.splitlines()[-1]
    assert hub.server.sent[PARAMS] == 1 << 16
    assert partials(tmp_path) == []


@pytest.mark.parametrize("inner", [FOLDER, "resid_post_all/*_width_1024_l0_small"])
def test_what_was_fetched_before_needs_no_hub(hub, inner):
    code = (
        "import os; os.environ['HF_HUB_OFFLINE'] = '{}'\n"
        "from scopelake.ingest.find_coders import find_coders\n"
        f"(coder,) = find_coders(['{REPO}/{inner}'])\n"
        "(same,) = find_coders([coder.path.parents[1]])\n"
        "print(coder.name, same == coder)"
    )
    for offline in (0, 1):
        done = hub("-c", code.format(offline))
        assert done.returncode == 0, done.stderr
        # The cache's own folders are called by revision; a coder in them keeps its name.
        assert done.stdout.split() == [f"gemma-scope-2-1b-it/{FOLDER}", "True"]
    other = code.replace("width_1024", "width_2048").format(1)
    assert "was asked for" in hub("-c", other).stderr.splitlines()[-1]


def test_a_tokenizer_is_fetched_without_the_models_weights(hub):
    hub.server.files = {f.name: f.read_bytes() for f in tiny.model_path().iterdir()}
    code = f"from scopelake.named import load_tokenizer\nprint(load_tokenizer('{REPO}').n_tokens)"
    done = hub("-c", code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 4096
    assert "tokenizer.json" in hub.server.fetched
    assert not [name for name in hub.server.fetched if name.endswith(".safetensors")]


def test_a_model_is_fetched_whole_at_its_revision(hub):
    hub.server.files = {f.name: f.read_bytes() for f in tiny.model_path().iterdir()}
    hub.server.files["pytorch_model.bin"] = b"pickled"
    code = (
        "from scopelake.ingest.model import find_model, load_model\n"
        f"m = load_model(find_model('{REPO}@v2'), device='cpu')\n"
        "print(m.name, m.revision, m.n_layers)"
    )
    done = hub("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [REPO, COMMIT, "6"]
    assert set(hub.server.revisions) == {"v2"}
    assert sorted(hub.server.fetched) == sorted(set(hub.server.files) - {"pytorch_model.bin"})


@pytest.mark.parametrize(
    ("repo", "says"),
    [
        ("google/gated", "accept its licence at https://huggingface.co/google/gated and set HF_"),
        ("google/nothing", "the hub has no repository google/nothing"),
        (f"{REPO}@v9", f"{REPO} was asked for; the hub did not give it"),
    ],
)
def test_refusals_are_one_line(hub, repo, says):
    done = hub("-m", "scopelake", "saes", repo)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_coder_that_is_not_there_is_refused(hub):
    code = "from scopelake.ingest.find_coders import find_coders; find_coders(['{}'])"
    done = hub("-c", code.format(f"{REPO}/resid_post/layer_9_width_16k_l0_big"))
    assert "has no such file or folder" in done.stderr.splitlines()[-1]
    done = hub("-c", code.format(f"{REPO}/resid_post/*_width_1m_*"))
    assert "has no params.safetensors of that name" in done.stderr.splitlines()[-1]


def test_a_hub_that_is_away_is_one_line(hub):
    code = (
        "import os; os.environ['HF_HUB_OFFLINE'] = '1'\n"
        "from scopelake.cli import main; raise SystemExit(main(['saes', 'google/x']))"
    )
    done = hub("-c", code)
    assert done.returncode == 2
    assert "google/x was asked for; the hub did not give it" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_hub_that_is_out_of_reach_is_one_line(tmp_path):
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    code = (
        "import huggingface_hub.utils._http as http; http.time.sleep = lambda seconds: None\n"
        f"from scopelake.cli import main; raise SystemExit(main(['saes', '{REPO}']))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True,
                          check=False, env=environment, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert "the hub did not give it" in done.stderr
    assert "HF_TOKEN" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_path_that_begins_here_is_not_asked_of_the_hub(hub, tmp_path):
    (tmp_path / "models").mkdir()
    code = "from scopelake.{} import {} as find; find({!r})"
    for module, name, asked in (
        ("ingest.model", "find_model", "models/typo"),
        ("ingest.list_coders", "list_coders", "models/typo"),
        ("ingest.find_coders", "find_coders", ["models/typo/resid_post/layer_1"]),
    ):
        done = hub("-c", code.format(module, name, asked))
        assert "there is no such folder" in done.stderr.splitlines()[-1]
