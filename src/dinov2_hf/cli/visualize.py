"""`dinov2-hf visualize`: what a backbone sees, as PNG files and on a page."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import Output, check_outputs, made_animation, made_anything, made_picture
from .arguments import SOURCES, add_device, add_images, add_imports, add_model, add_output, positive, without_bars
from .parser import Commands, Parser

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..evaluation.dense_heads import DenseHead
    from ..features import FeatureExtractor
    from ..visualize import Picture

_THUMBNAIL, _OVERLAY = 224, 518
"""Longer side in pixels of what is shown without patches."""
_MASS = 0.6
"""`visualize.attention_masks.MASS`, without importing it."""


def add_visualize(commands: Commands) -> None:
    visualize = commands.add_parser(
        "visualize",
        help="draw what a backbone sees, or serve a page that does",
        about="Draw what a backbone sees as PNG files, or serve a page that does.",
        example="dinov2-hf visualize pca a.jpg b.jpg c.jpg --model runs/mine\ndinov2-hf visualize page runs/mine",
    )
    actions = visualize.add_subparsers(dest="action", required=True, metavar="ACTION")

    pca = _action(actions, "pca", draw_pca, "principal components of patch features as colours, without background")
    pca.add_argument("--keep-background", action="store_true", help="colour all patches")
    _action(actions, "attention", draw_attention, "what CLS looks at in the last block, head by head")
    heads = _action(
        actions, "heads", draw_heads, "the areas that the heads of the last block look at, in their colours"
    )
    _add_mass(heads)
    video = _action(
        actions,
        "video",
        draw_video,
        "the areas that the heads look at in every frame of a video, beside the frame",
        images="frames/",
        moving=True,
    )
    _add_mass(video)
    video.add_argument(
        "--heads", nargs="+", type=positive, metavar="N", help="those that are shown, from 1 (default: all)"
    )
    video.add_argument(
        "--fps",
        type=_rate,
        metavar="N",
        help="frames a second (default: those of an animated picture, else 25); 50 at most",
    )
    matches = _action(
        actions, "matches", draw_matches, "patches of two images that are each other's nearest", images="a.jpg b.jpg"
    )
    matches.add_argument("--keep-background", action="store_true", help="match all patches, not only those of objects")
    matches.add_argument("--pairs", type=positive, default=20, metavar="N", help="at most (default: 20)")
    matches.add_argument(
        "--spacing", type=positive, default=2, metavar="N", help="patches from one pair to the next (default: 2)"
    )
    neighbours = _action(
        actions,
        "neighbours",
        draw_neighbours,
        "nearest images of a collection, with cosines",
        further=" --collection /my/images",
    )
    neighbours.add_input(
        "collection",
        "--collection",
        "where to look: a folder or a set",
        metavar="PATH",
        word=False,
        remedy="the folder or the set to look in",
    )
    neighbours.add_argument("--collection-split", default="train", metavar="NAME", help="of a set (default: train)")
    neighbours.add_argument("-k", type=positive, default=6, metavar="N", help="neighbours (default: 6)")
    neighbours.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode (default: 0)")
    neighbours.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder where features are kept for the next time"
    )
    similarity = _action(actions, "similarity", draw_similarity, "cosine of one patch and all patches of all images")
    similarity.add_argument(
        "--point",
        type=_point,
        default=(0.5, 0.5),
        metavar="X,Y",
        help="where the patch is, in shares of the first image's width and height from its top left (default: 0.5,0.5)",
    )
    overlay = _action(
        actions,
        "overlay",
        draw_overlay,
        "segmentations or depths over their images",
        further=" --head runs/segmentation/head.safetensors",
    )
    source = overlay.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--maps", nargs="+", type=Path, metavar="FILE", help="one an image: .npy, or PNG of one channel"
    )
    source.add_argument(
        "--head", type=Path, metavar="FILE", help="of segmentation or depth, for --model: head.safetensors"
    )
    overlay.add_argument("--kind", choices=("labels", "depth"), default="labels", help="of --maps (default: labels)")
    overlay.add_argument("--classes", type=Path, metavar="FILE", help="names of the labels from 0 on, a line each")
    overlay.add_argument(
        "--ignored", type=int, default=255, metavar="N", help="label of pixels of no class (default: 255)"
    )
    overlay.add_argument("--unit", default="m", help="of depths (default: m)")

    page = actions.add_parser(
        "page",
        help="serve a page for dropping images and clicking on patches",
        about="Serve a page on this machine: drop images, see components and attention, click a patch. Ends with "
        "Ctrl+C.",
        example="dinov2-hf visualize page runs/mine --port 8080",
    )
    _add_model(page, word=True)
    page.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: 127.0.0.1)")
    page.add_argument("--port", type=_port, default=8080, metavar="N", help="to listen on (default: 8080)")
    page.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NAME",
        help="host name that the page is also reached under, such as that of a proxy; may be repeated",
    )
    page.add_argument("--show", action="store_true", help="open it in a browser")
    page.set_defaults(run=serve)


def draw_pca(args: argparse.Namespace) -> None:
    from .. import visualize

    backbone, pictures, features = _open(args)
    masks = None if args.keep_background else visualize.find_foreground(features)
    colors = visualize.pca_colors(features, masks)
    title = f"{backbone.name}: principal components of {'all' if masks is None else 'foreground'} patches"
    _done(visualize.draw_pca(pictures, colors, args.output, title), len(pictures))


def draw_attention(args: argparse.Namespace) -> None:
    from .. import visualize

    backbone, pictures, _ = _open(args, features=False)
    attention = [visualize.attention_maps(backbone, picture) for picture in pictures]
    title = f"{backbone.name}: attention of CLS in the last block"
    _done(visualize.draw_attention(pictures, attention, args.output, title), len(pictures))


def draw_heads(args: argparse.Namespace) -> None:
    from .. import visualize
    from ..visualize.attention_masks import mass_in_words

    backbone, pictures, _ = _open(args, features=False)
    attention = [visualize.attention_maps(backbone, picture) for picture in pictures]
    title = f"{backbone.name}: {mass_in_words(args.mass)}"
    _done(visualize.draw_attention_masks(pictures, attention, args.output, args.mass, title), len(pictures))


def draw_video(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from .. import visualize
    from ..visualize.video import check_animation

    check_animation(args.output)
    frames = visualize.open_frames(args.data).thinned(args.count)
    if args.fps is not None:
        frames = replace(frames, seconds=1 / args.fps)
    backbone = _backbone(args)
    heads = [head - 1 for head in args.heads] if args.heads else None
    image_size = args.image_size or visualize.PATCHES_A_SIDE * backbone.stride
    count = visualize.animate_attention(backbone, frames, args.output, image_size, args.mass, heads)
    print(f"{args.output}: {count} {'frame' if count == 1 else 'frames'}")


def draw_matches(args: argparse.Namespace) -> None:
    from .. import visualize

    backbone, pictures, _ = _open(args, features=False)
    if len(pictures) != 2:
        raise ValueError(f"matches are those of two images, and --data gives {len(pictures)}; name two files")
    first, second = [visualize.patch_features(backbone, picture) for picture in pictures]
    masks = None
    if not args.keep_background:
        one, other = visualize.find_foreground([first, second])
        masks = one, other
    matches = visualize.match_patches(first, second, masks, args.pairs, args.spacing)
    title = f"{backbone.name}: {len(matches)} pairs of patches that are each other's nearest"
    grids = (first.shape[0], first.shape[1]), (second.shape[0], second.shape[1])
    _done(visualize.draw_matches((pictures[0], pictures[1]), grids, matches, args.output, title), 2)


def draw_neighbours(args: argparse.Namespace) -> None:
    from .. import visualize

    backbone = _backbone(args)

    def open(data: bytes, name: str) -> tuple[bytes, Picture]:
        return data, visualize.open_picture(data, name, _THUMBNAIL, num_channels=channels, decoding=transform.decoding)

    transform = backbone.transform
    channels = len(transform.mean)
    queries = visualize.read_images(args.data, open, args.split, args.count)
    collection = visualize.open_collection(args.collection, args.collection_split)
    asked = [(data, picture.name) for data, picture in queries]
    found = visualize.find_neighbours(backbone, asked, collection, args.k, args.workers, args.cache)
    nearest = [
        [(open(*collection.read(row))[1], cosine) for row, cosine in zip(neighbours.rows, neighbours.cosines)]
        for neighbours in found
    ]
    title = f"{backbone.name}: the nearest of {len(collection):,} images, with cosines"
    _done(visualize.draw_neighbours([picture for _, picture in queries], nearest, args.output, title), len(queries))


def draw_similarity(args: argparse.Namespace) -> None:
    from .. import visualize

    backbone, pictures, features = _open(args)
    row, column = visualize.patch_at(args.point, *features[0].shape[:2])
    maps = visualize.similarity_maps(features, 0, row, column)
    title = f"{backbone.name}: similarity to the framed patch of {pictures[0].name}"
    _done(visualize.draw_similarity(pictures, maps, 0, row, column, args.output, title), len(pictures))


def draw_overlay(args: argparse.Namespace) -> None:
    from .. import visualize

    names = dict(enumerate(args.classes.read_text().splitlines())) if args.classes else None
    title, depth = "", args.kind == "depth"
    if args.head:
        backbone, pictures, maps, head = _predict(args)
        depth, names = head.meta.kind != "segmentation", names or dict(enumerate(head.meta.classes))
        title = f"{backbone.name}: {'depth' if depth else 'segmentation'} by {args.head}"
    else:
        pictures = visualize.open_pictures(args.data, args.image_size or _OVERLAY, split=args.split, count=args.count)
        if len(args.maps) != len(pictures):
            raise ValueError(
                f"--maps has {len(args.maps)} files for {len(pictures)} images; give one for each, in their order"
            )
        maps = [visualize.read_map(path.read_bytes(), str(path)) for path in args.maps]
    if depth:
        _done(visualize.draw_depths(pictures, maps, args.output, args.unit, title), len(pictures))
    else:
        _done(visualize.draw_labels(pictures, maps, args.output, names, args.ignored, title), len(pictures))


def _predict(
    args: argparse.Namespace,
) -> tuple[FeatureExtractor, list[Picture], list[np.ndarray[Any, Any]], DenseHead]:
    """Backbone, pictures, the maps that a head makes of them, and the head."""
    from ..evaluation import load_dense_head, predict_map

    if args.model is None:
        raise ValueError("--head needs the backbone that it was trained on: --model")
    backbone, pictures, _ = _open(args, features=False)
    head = load_dense_head(args.head, backbone.device)
    return backbone, pictures, [predict_map(backbone, head, picture.pixels).cpu().numpy() for picture in pictures], head


def draw(args: argparse.Namespace) -> None:
    """Checks the paths of an action and runs it."""
    outputs = [Output("--output", args.output, made_animation if args.action == "video" else made_picture)]
    images = [("--data", path) for path in args.data]
    models = [("--model", args.model)] if args.model else []
    files: list[tuple[str, str]] = []
    if args.action == "neighbours":
        images.append(("--collection", args.collection))
        outputs += [Output("--cache", args.cache, made_anything, folder=True)] if args.cache else []
    if args.action == "overlay":
        files += [("--maps", str(path)) for path in args.maps or ()]
        files += [(key, str(path)) for key, path in (("--head", args.head), ("--classes", args.classes)) if path]
    check_outputs(outputs, images, models, files)
    args.draw(args)


def serve(args: argparse.Namespace) -> None:
    from ..visualize.page import serve_page

    backbone = _backbone(args)
    serve_page(backbone, args.image_size, args.host, args.port, args.show, args.allow)


def _action(
    actions: Commands,
    name: str,
    run: Callable[[argparse.Namespace], None],
    line: str,
    images: str = "a.jpg",
    further: str = "",
    moving: bool = False,
) -> Parser:
    """Adds an action that draws; `images` and `further` are words of its example, `moving`: frames of a video."""
    parser = actions.add_parser(
        name,
        help=line,
        about=f"Draw {line}.",
        example=f"dinov2-hf visualize {name} {images} --model runs/mine{further}",
    )
    what = "a folder of frames, or an animated GIF or WebP" if moving else "files, folders of them, or sets that"
    remedy = what if moving else "files, folders of images, or sets that `datasets` reads"
    add_images(parser, what if moving else f"{what} `datasets` reads", many=True, old="--images", remedy=remedy)
    _add_model(parser, required=name != "overlay")
    if moving:
        parser.add_argument(
            "--count", type=positive, metavar="N", help="frames at most, evenly spaced (default: all of them)"
        )
        add_output(parser, "GIF or WebP file to write (default: video.webp)", default=Path("video.webp"))
    else:
        parser.add_argument("--split", default="train", metavar="NAME", help="of a set (default: train)")
        parser.add_argument(
            "--count", type=positive, default=8, metavar="N", help="images out of each folder or set (default: 8)"
        )
        add_output(parser, f"PNG file to write (default: {name}.png)", default=Path(f"{name}.png"))
    parser.set_defaults(run=draw, draw=run)
    return parser


def _add_mass(parser: Parser) -> None:
    parser.add_argument(
        "--mass",
        type=_mass,
        default=_MASS,
        metavar="SHARE",
        help=f"of a head's attention that its area keeps (default: {_MASS}, as published)",
    )


def _add_model(parser: Parser, required: bool = True, word: bool = False) -> None:
    remedy = "a run, an export, a model on the Hub or a file" if required else ""
    add_model(parser, SOURCES + "; or any vision transformer that AutoModel loads", word=word, remedy=remedy)
    add_device(parser)
    add_imports(parser)
    parser.add_argument(
        "--image-size",
        type=positive,
        metavar="N",
        help="longer side in pixels, a multiple of the patch; the other keeps the aspect ratio (default: 37 patches)",
    )


def _backbone(args: argparse.Namespace) -> FeatureExtractor:
    from ..api.process import computing_on
    from ..config.checks import multiple_of_patch
    from ..features import open_backbone

    without_bars()
    with computing_on(args.device) as device:
        backbone = open_backbone(args.model, device)
    if args.image_size is not None:
        multiple_of_patch("--image-size", args.image_size, backbone.stride)
    return backbone


def _open(
    args: argparse.Namespace, features: bool = True
) -> tuple[FeatureExtractor, list[Picture], list[torch.Tensor]]:
    """Backbone, pictures, and the features of their patches."""
    from .. import visualize

    backbone = _backbone(args)
    image_size = args.image_size or visualize.PATCHES_A_SIDE * backbone.stride
    transform = backbone.transform
    channels = len(transform.mean)
    pictures = visualize.open_pictures(
        args.data, image_size, backbone.stride, channels, args.split, args.count, transform.decoding
    )
    found = [visualize.patch_features(backbone, picture) for picture in pictures] if features else []
    return backbone, pictures, found


def _done(path: Path, count: int) -> None:
    print(f"{path}: {count} {'image' if count == 1 else 'images'}")


def _mass(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share of the attention; give one above 0 and at most 1")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value <= 50:
        raise argparse.ArgumentTypeError(f"{text} is not a number of frames a second; give one up to 50")
    return value


def _port(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text} is not a port; give a number from 1 to 65535")
    return int(text)


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a point; give two shares such as 0.5,0.25") from None
    return x, y
