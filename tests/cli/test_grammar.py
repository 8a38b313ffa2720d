"""One grammar for all commands: every old form, and every other way to write it, gives the same arguments."""

import pytest

from dinov2_hf.cli import build_program, main
from dinov2_hf.cli import train as training
from dinov2_hf.cli.arguments import overrides_of
from dinov2_hf.cli.curate import KEYS as CURATE
from dinov2_hf.cli.evaluate import KEYS as EVALUATE
from dinov2_hf.cli.running import parse
from dinov2_hf.config import RUNS, load_config
from dinov2_hf.config.curation import CurationConfig
from dinov2_hf.config.evaluations import KnnEvaluation

PROGRAM = build_program()


def arguments(*words):
    """What a command line says, as the values that its command reads."""
    found = vars(parse(PROGRAM, words))
    return {name: value for name, value in found.items() if name not in ("parser", "run", "draw", "sections")}


@pytest.fixture
def example(monkeypatch):
    """The arguments of an example, which takes those of the command."""
    found = []
    monkeypatch.setattr(training, "execute", lambda parser, words: found.append(parse(parser, words)))

    def run(objective, *words):
        monkeypatch.setattr("sys.argv", ["example.py", *words])
        training.train("Trains.", objective)
        return found.pop()

    return run


FORMS = {
    "export": [
        "export runs/a out --format timm",
        "export runs/a --output out --format timm",
        "export --format timm --model runs/a out",
        "export --output out --model runs/a --format timm",
        "export --format timm --output out runs/a",
    ],
    "inspect": ["inspect runs/a", "inspect --model runs/a"],
    "push": [
        "push runs/a me/b --private --tag v1",
        "push --private runs/a --tag v1 me/b",
        "push --model runs/a me/b --tag v1 --private",
        "push --repo me/b runs/a --tag v1 --private",
    ],
    "verify": ["verify runs/a --from 4", "verify --from 4 --model runs/a"],
    "evaluate": [
        "evaluate knn --model m --data x --output o k=[1] test.split=train",
        "evaluate --model m --data x knn k=[1] --output o test.split=train",
        "evaluate k=[1] test.split=train knn --output o --data x --model m",
    ],
    "keys of an evaluator": ["evaluate knn --keys", "evaluate --keys knn"],
    "section of an evaluator": ["evaluate knn --keys train", "evaluate --keys train knn"],
    "pca": [
        "visualize pca --model m --images a.jpg b.jpg --output x.png",
        "visualize pca --model m --data a.jpg b.jpg --output x.png",
        "visualize pca a.jpg b.jpg --model m --output x.png",
        "visualize pca --model m a.jpg b.jpg --output x.png",
        "visualize pca --output x.png --model m a.jpg b.jpg",
    ],
    "overlay": ["visualize overlay --images a=b.jpg --maps m.npy", "visualize overlay a=b.jpg --maps m.npy"],
    "page": ["visualize page --model m --port 1", "visualize page m --port 1", "visualize page --port 1 m"],
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_give_the_same_arguments(name):
    """The first one is that of 0.5."""
    first, *others = [arguments(*form.split()) for form in FORMS[name]]
    for other in others:
        assert other == first


CONFIGURED = {
    "pretrain": [
        "pretrain data.train.path=x init.path=m train.output_dir=o train.epochs=3",
        "pretrain x --model m --output o train.epochs=3",
        "pretrain --output o train.epochs=3 x init.path=m",
        "pretrain --data x --model m train.epochs=3 --output=o",
        "pretrain train.epochs=3 --output o --model m x",
    ],
    "distill": [
        "distill data.train.path=x distill.teacher=m train.output_dir=o train.epochs=3",
        "distill x --model m --output o train.epochs=3",
        "distill --model m --data x train.epochs=3 train.output_dir=o",
    ],
    "data stats": ["data stats data.train.path=x", "data stats x", "data stats --data x"],
    "data show": ["data show data.train.path=x --output b.png", "data show --output b.png x"],
    "curate": [
        "curate pool.images.path=x embed.model=m output_dir=o select=all",
        "curate x --model m --output o select=all",
        "curate select=all --output o --data x --model m",
    ],
    "evaluate": [
        "evaluate knn --model m train.path=x test.path=x output_dir=o cache_dir=c",
        "evaluate knn --model m --data x --test x --output o --cache c",
    ],
}


def configuration(*words):
    """The configuration that a command line gives."""
    args = parse(PROGRAM, words)
    if args.command == "curate":
        return load_config(args.config, overrides_of(args, CURATE), CurationConfig)
    if args.command == "evaluate":
        return load_config(args.config, overrides_of(args, EVALUATE), KnnEvaluation)
    if args.command == "data":
        return load_config(args.config, overrides_of(args, {"data": "data.train.path"}))
    return load_config(args.config, training.overrides(args), RUNS[args.objective])


@pytest.mark.parametrize("name", CONFIGURED)
def test_forms_give_the_same_configuration(name):
    first, *others = [configuration(*form.split()) for form in CONFIGURED[name]]
    for other in others:
        assert other == first


@pytest.mark.parametrize("command, objective", [("pretrain", "dinov2"), ("distill", "distill_prototypes")])
def test_an_example_takes_the_arguments_of_its_command(example, command, objective):
    words = ["x", "--model", "m", "--output", "o", "--resume", "never", "--device", "cpu", "train.epochs=3"]
    ours, theirs = vars(parse(PROGRAM, [command, *words])), vars(example(objective, *words))
    for found in (ours, theirs):
        for name in ("parser", "command"):
            found.pop(name, None)
    assert ours == theirs


@pytest.mark.parametrize("path", ["*.jpg", "[a].txt", "null", "12", "a: b", "x/{1,2}", "~", "été 'x' \"y\"", "a\\b"])
def test_a_path_in_an_option_is_the_text_that_was_given(path):
    assert configuration("pretrain", "--data", path).data.train.path == path
    assert configuration("pretrain", path).data.train.path == path


def test_a_word_that_looks_like_a_key_is_a_path_where_it_begins_with_a_dot():
    assert configuration("pretrain", "./a=b").data.train.path == "./a=b"


@pytest.mark.parametrize(
    "words, message",
    [
        ("export runs/a", "--output is missing; give the folder (hf) or the file to write"),
        ("export", "--model is missing; give a run, an export, a model on the Hub or a file"),
        ("export a b c", "unrecognized arguments: c; see dinov2-hf export --help"),
        ("export --model a --output b c", "unrecognized arguments: c"),
        ("inspect", "--model is missing; give a file, a folder or a model on the Hub"),
        ("push runs/a", "--repo is missing; give namespace/name of the repository"),
        ("verify", "--model is missing; give the output folder of a run"),
        ("evaluate", "NAME is missing; give the name of an evaluator; dinov2-hf evaluate list prints all"),
        ("evaluate knn x --model m", "unrecognized arguments: x"),
        ("visualize pca a.jpg", "--model is missing; give a run"),
        ("visualize pca --model m", "--data is missing; give files, folders of images"),
        ("visualize neighbours a.jpg --model m", "--collection is missing; give the folder or the set to look in"),
        ("visualize page", "--model is missing"),
        ("pretrain x y", "unrecognized arguments: y; see dinov2-hf pretrain --help"),
        ("pretrain x --nothing y", "unrecognized arguments: --nothing"),
        ("pretrain x data.train.path=y", "--data x and data.train.path=y set the same key; remove one of them"),
        ("distill x --model m distill.teacher=n", "--model m and distill.teacher=n set the same key"),
        ("evaluate knn --data x train.path=y", "--data x and train.path=y set the same key"),
        ("curate x --output o output_dir=p", "--output o and output_dir=p set the same key"),
        ("nothing", "invalid choice: 'nothing'"),
        ("", "the following arguments are required: COMMAND"),
    ],
)
def test_what_is_missing_or_too_much_is_said_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("dinov2-hf: error: ") and message in said
    assert said.count("\n") == 1 and said.endswith("\n")
