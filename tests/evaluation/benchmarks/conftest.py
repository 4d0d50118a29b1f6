"""Small data folders in every benchmark's official files, written by the tests.

Each writer names where its layout was looked up.
"""

import gzip
import json

import PIL.Image
import pytest


def write_scienceqa(folder, turn):
    """Two questions of three choices, one with an image; `turn` moves the gold answers on."""
    problems = {}
    for number, question in enumerate(("Which attracts?", "Which shines?")):
        problems[str(number)] = {
            "question": question,
            "choices": ["iron", "wood", "a stone"],
            "answer": (number + turn) % 3,
            "hint": "Metals shine." if number else "",
            "image": None if number else "image.png",
            "subject": "natural science",
            "grade": f"grade{3 + 5 * number}",
            "lecture": "",
            "solution": "",
        }
    image = folder / "images" / "test" / "0" / "image.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 8), "red").save(image)
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": list(problems)}))


def write_nlvr(folder, turn):
    """Two sentences about one image; `turn` moves true and false."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 8), "red").save(folder / "images" / "0.png")
    lines = [
        {
            "id": f"{number}-0-0",
            "sentence": sentence,
            "label": ("true", "false")[(number + turn) % 2],
            "image": "images/0.png",
        }
        for number, sentence in enumerate(("There is a box.", "There is a tower."))
    ]
    (folder / "dev.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_lines(file, rows):
    """Lines of JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_image(file, color="red"):
    file.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 8), color).save(file)


def write_race(folder, turn):
    """A passage of each level; the official files are JSON in spite of their ending.

    RACE.tar.gz (Lai et al. 2017): RACE/SPLIT/LEVEL/N.txt; keys as `datasets`' old race.py reads
    them.
    """
    for level, name in (("middle", 7), ("high", 12)):
        passage = {
            "id": f"{level}{name}.txt",
            "article": "Ann has a red kite. It flies high.",
            "questions": ["What has Ann?", "Ann's kite is  _  ."],
            "options": [["a kite", "a cat", "a hat", "a car"], ["red", "blue", "low", "old"]],
            "answers": ["AB"[turn], "CD"[turn]],
        }
        write_json(folder / "test" / level / f"{name}.txt", passage)


def write_openbookqa(folder, turn):
    """Two lines of OpenBookQA-V1-Sep2018.zip's Data/Main/test.jsonl."""
    texts = ["a magnet", "a cup", "a book", "a leaf"]
    choices = [{"text": t, "label": x} for t, x in zip(texts, "ABCD", strict=True)]
    rows = [
        {"id": f"8-{n}", "question": {"stem": stem, "choices": choices}, "answerKey": "AB"[turn]}
        for n, stem in enumerate(("Iron is drawn by", "Tea is in"))
    ]
    write_lines(folder / "Data" / "Main" / "test.jsonl", rows)


def write_boolq(folder, turn):
    """google-research-datasets/boolean-questions: dev.jsonl, keys as its README names them."""
    rows = [
        {"question": asked, "title": "Sky", "answer": bool(n ^ turn), "passage": "It is blue."}
        for n, asked in enumerate(("is the sky blue", "is the sky red"))
    ]
    write_lines(folder / "dev.jsonl", rows)


def write_hellaswag(folder, turn):
    """rowanzellers/hellaswag: data/hellaswag_val.jsonl; one row of each of its two sources."""
    row = {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man sits on a roof.",
        "ctx_b": "he",
        "ctx": "A man sits on a roof. he",
        "endings": ["sings.", "rips up tiles.", "eats [step] soup.", "sleeps."],
        "source_id": "activitynet~v_-JhWjGDPHMY",
        "split": "val",
        "split_type": "indomain",
        "label": 2 + turn,
    }
    how_to = "[header] How to wash a car [title] Find a place. [step] Park it there."
    other = {"activity_label": "Cars & Other Vehicles", "ctx_a": how_to, "ctx_b": "", "ctx": how_to}
    other |= {"source_id": "wikihow~63", "split_type": "zeroshot"}
    write_lines(folder / "hellaswag_val.jsonl", [row, row | other])


def write_realworldqa(folder, turn):
    """annotations.json: most questions list their options, some are open.

    The questions' form is that of xai-org/RealworldQA, as lmms-eval's realworldqa/utils.py reads
    them; the JSON's keys are not documented anywhere.
    """
    tail = "Please answer directly with only the letter of the correct option and nothing else."
    listed = f"Which way is the car?\n\nA. Left\nB. Right\n{tail}"
    rows = [
        {"image": "0.webp", "question": listed, "answer": "AB"[turn]},
        {"image": "0.webp", "question": "How many cars are there?", "answer": "23"[turn]},
    ]
    write_image(folder / "images" / "0.webp")
    write_json(folder / "annotations.json", rows)


def write_ai2d(folder, turn):
    """Diagram 0 is in the test list, diagram 1 is not; one of two questions goes by letters.

    ai2d-all.zip: images/, abc_images/ (words replaced by letters), questions/, annotations/; the
    list is prior-datasets/ai2d_test_ids.csv, a number a line.
    """
    for name in ("0.png", "1.png"):
        question = {
            "abcLabel": False,
            "answerTexts": ["frog", "fly", "fish", "fox"],
            "correctAnswer": turn,
            "questionId": f"{name}-0",
        }
        lettered = question | {"abcLabel": True, "answerTexts": ["A", "B", "C", "D"]}
        lettered["questionId"] = f"{name}-1"
        questions = {"What eats the fly?": question, "Which is the fly?": lettered}
        content = {"imageName": name, "questions": questions}
        write_json(folder / "ai2d" / "questions" / f"{name}.json", content)
        write_image(folder / "ai2d" / "images" / name)
        write_image(folder / "ai2d" / "abc_images" / name, "blue")
    (folder / "ai2d_test_ids.csv").write_text("0\n77\n")


def write_pope(folder, turn):
    """Two questions of each split; the files are lines of JSON in spite of their ending.

    AoiDragon/POPE (now RUCAIBox/POPE): output/coco/coco_pope_SPLIT.json.
    """
    for split in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": n + 1,
                "image": "COCO_val2014_000000310196.jpg",
                "text": f"Is there a {thing} in the image?",
                "label": ("yes", "no")[n ^ turn],
            }
            for n, thing in enumerate(("snowboard", "car"))
        ]
        write_lines(folder / f"coco_pope_{split}.json", rows)
    write_image(folder / "val2014" / "COCO_val2014_000000310196.jpg")


def write_gqa(folder, turn):
    """An object of questions by their id.

    questions1.2.zip; keys as the official eval.py reads them.
    """
    rows = {
        "201307251": {
            "semantic": [],
            "entailed": ["201640614"],
            "question": "Is it overcast?",
            "imageId": "n161313",
            "isBalanced": True,
            "groups": {"global": None, "local": "13-weather"},
            "answer": ("no", "yes")[turn],
            "types": {"detailed": "weather", "semantic": "global", "structural": "verify"},
            "fullAnswer": ("No, it is clear.", "Yes, it is overcast.")[turn],
        },
        "201640614": {
            "question": "Who is wearing the dress?",
            "imageId": "n161313",
            "answer": ("woman", "young girl")[turn],
            "types": {"detailed": "relS", "semantic": "rel", "structural": "query"},
            "fullAnswer": "Someone is.",
        },
    }
    write_json(folder / "testdev_balanced_questions.json", rows)
    write_image(folder / "images" / "n161313.jpg")


def write_textvqa(folder, turn):
    """TextVQA_0.5.1_val.json, keys as textvqa.org's download page describes them."""
    answers = [["nokia"] * 8 + ["toshiba"] * 2, ["dakota"] * 3 + ["clos culombu"] * 7][turn]
    row = {
        "question": "what is the brand of this camera?",
        "image_id": "003a8ae2ef43b901",
        "image_classes": ["Cassette deck"],
        "flickr_original_url": "https://example.org/a.jpg",
        "image_width": 8,
        "image_height": 8,
        "answers": answers,
        "question_tokens": ["what", "is"],
        "question_id": 34602,
        "set_name": "val",
    }
    content = {"dataset_type": "val", "dataset_name": "textvqa", "data": [row]}
    write_json(folder / "TextVQA_0.5.1_val.json", content)
    write_image(folder / "train_images" / "003a8ae2ef43b901.jpg")


def write_vsr(folder, turn):
    """cambridgeltl/visual-spatial-reasoning: data/splits/random/test.jsonl, as its lines are."""
    rows = [
        {
            "image": "000000050403.jpg",
            "image_link": "http://images.cocodataset.org/train2017/000000050403.jpg",
            "caption": f"The bear is {relation} the person.",
            "label": n ^ turn,
            "relation": relation,
            "annotator_id": 31,
            "vote_true_validator_id": "[2, 6]",
            "vote_false_validator_id": "[]",
            "reference_frame": None,
        }
        for n, relation in enumerate(("in front of", "behind"))
    ]
    write_lines(folder / "data" / "splits" / "random" / "test.jsonl", rows)
    write_image(folder / "data" / "trainval2017" / "000000050403.jpg")


def write_snli_ve(folder, turn):
    """Three hypotheses, the last without an agreed label.

    SNLI's own keys and Flickr30K_ID, which necla-ml/SNLI-VE's snli_ve_generator.py adds.
    """
    rows = [
        {
            "Flickr30K_ID": "4705552913",
            "annotator_labels": [label] * 5,
            "captionID": "4705552913.jpg#2",
            "gold_label": label,
            "pairID": f"4705552913.jpg#2r1{n}",
            "sentence1": "Two women are embracing.",
            "sentence2": f"{n} women hug.",
        }
        for n, label in enumerate(
            (*(("entailment", "neutral"), ("neutral", "contradiction"))[turn], "-")
        )
    ]
    write_lines(folder / "snli_ve_test.jsonl", rows)
    write_image(folder / "flickr30k_images" / "4705552913.jpg")


def write_cifar10(folder, turn):
    """cifar-10-binary.tar.gz: a label byte, then the planes (cs.toronto.edu/~kriz/cifar.html)."""
    rows = [bytes([label + turn]) + bytes([9 * label]) * 3072 for label in (3, 8)]
    (folder / "cifar-10-batches-bin").mkdir(parents=True, exist_ok=True)
    (folder / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(b"".join(rows))


def write_cifar100(folder, turn):
    """A coarse label, a fine one, and the planes of red, green and blue."""
    rows = [bytes([0, label + turn]) + bytes([label]) * 3072 for label in (24, 98)]
    (folder / "cifar-100-binary").mkdir(parents=True, exist_ok=True)
    (folder / "cifar-100-binary" / "test.bin").write_bytes(b"".join(rows))


def write_idx(folder, turn):
    """Two images of 4 x 4 and their classes, the images compressed (LeCun's page on IDX)."""
    folder.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 4, 4))
    images = gzip.compress(header + bytes(range(32)), mtime=0)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(images)
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 2, 5 + turn, 8 + turn])
    (folder / "t10k-labels-idx1-ubyte").write_bytes(labels)


def write_digits(folder, turn):
    """scikit-learn's table: 64 pixels of 0 to 16 and the class, as floats."""
    rows = [[float(n % 17) for n in range(64)] + [float(label + turn)] for label in (0, 8)]
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(",".join(map(str, row)) + "\n" for row in rows)
    (folder / "digits.csv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def write_mme(folder, turn):
    """A subtask of each official layout: all in one folder, and images and questions apart.

    MME_Benchmark_release_version.zip, whose subtasks lie in MME_Benchmark/ since its second
    release, as LLaVA's convert_answer_to_mme.py walks them.
    """
    for inside, images in (("OCR", "OCR"), ("artwork/questions_answers_YN", "artwork/images")):
        place = folder / "MME_Benchmark_release_version" / "MME_Benchmark"
        write_image(place / images / "0001.png")
        golds = ("Yes", "No") if turn == 0 else ("No", "Yes")
        asked = ("Is it in Italian?", "Is it in German?")
        lines = [
            f"{q} Please answer yes or no.\t{gold}\n" for q, gold in zip(asked, golds, strict=True)
        ]
        (place / inside).mkdir(parents=True, exist_ok=True)
        (place / inside / "0001.txt").write_text("".join(lines))


def write_coco_captions(folder, turn):
    """Karpathy's dataset_coco.json (caption_datasets.zip): two test images and one of training.

    (With one image every word is in all images' captions, and every CIDEr is 0.)
    """
    images = [
        {
            "filepath": "val2014",
            "sentids": [2 * n, 2 * n + 1],
            "filename": f"COCO_val2014_00000039118{n}.jpg",
            "imgid": n,
            "split": split,
            "sentences": [
                {"tokens": text.lower().split(), "raw": text, "imgid": n, "sentid": 2 * n + k}
                for k, text in enumerate((f"A {thing} on a mat {turn}.", f"The {thing} sits."))
            ],
            "cocoid": 391180 + n,
        }
        for n, (split, thing) in enumerate((("test", "cat"), ("test", "dog"), ("restval", "hat")))
    ]
    write_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})
    for n in range(2):
        write_image(folder / "val2014" / f"COCO_val2014_00000039118{n}.jpg")


FILES = {
    "scienceqa": write_scienceqa,
    "sciencebook": write_scienceqa,
    "nlvr": write_nlvr,
    "race": write_race,
    "openbookqa": write_openbookqa,
    "boolq": write_boolq,
    "hellaswag": write_hellaswag,
    "realworldqa": write_realworldqa,
    "ai2d": write_ai2d,
    "pope": write_pope,
    "gqa": write_gqa,
    "textvqa": write_textvqa,
    "vsr": write_vsr,
    "snli_ve": write_snli_ve,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "mnist": write_idx,
    "fashion_mnist": write_idx,
    "digits": write_digits,
    "mme": write_mme,
    "coco_captions": write_coco_captions,
}
"""A writer a benchmark: (folder, turn) -> the official files of a few items in the folder.

The questions are the same for every `turn`; the gold answer of each item under turn 1 is another
one than under turn 0. A new row of the table needs its line here.
"""


@pytest.fixture(scope="session")
def official_files():
    return FILES
