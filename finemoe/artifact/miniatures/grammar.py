"""The project's own text: seeded questions, answers and dialogues over a dozen everyday topics and the standard library.

Two genres share one vocabulary: `question` (short, one turn) and `dialogue` (a task worked out over several turns). Every
sentence is generated from `data/corpus/topics.json`; no text is quoted.
"""

import json
from functools import cache
from random import Random

from finemoe.paths import DATA

Topic = dict[str, list[str]]

KINDS = {
    "subjects": "subject",
    "actions": "action",
    "parts": "part",
    "qualities": "quality",
    "problems": "problem",
    "reasons": "reason",
}
STDLIB = (
    "json.dumps",
    "json.loads",
    "os.path.join",
    "os.listdir",
    "re.compile",
    "re.findall",
    "random.shuffle",
    "random.choice",
    "math.sqrt",
    "math.gcd",
    "itertools.chain",
    "itertools.product",
    "functools.reduce",
    "functools.lru_cache",
    "collections.Counter",
    "collections.deque",
    "datetime.timedelta",
    "pathlib.Path",
    "shutil.copy",
    "subprocess.run",
    "textwrap.wrap",
    "string.Template",
    "csv.reader",
    "heapq.heappush",
    "bisect.insort",
    "statistics.median",
    "fractions.Fraction",
    "decimal.Decimal",
    "operator.itemgetter",
    "copy.deepcopy",
    "pprint.pprint",
    "time.sleep",
    "threading.Lock",
    "queue.Queue",
    "socket.create_connection",
    "hashlib.sha256",
    "base64.b64encode",
    "struct.pack",
    "zlib.compress",
    "tempfile.mkdtemp",
    "glob.glob",
    "fnmatch.filter",
    "logging.getLogger",
    "argparse.ArgumentParser",
    "contextlib.suppress",
    "enum.Enum",
    "dataclasses.dataclass",
    "typing.NamedTuple",
    "abc.abstractmethod",
    "inspect.signature",
    "ast.parse",
    "tokenize.tokenize",
)

QUESTIONS = (
    "How do I {action} {subject} without {problem}?",
    "What is the best way to {action} {subject}?",
    "Why is {subject} sometimes {quality}?",
    "Give me three tips about {subject}.",
    "Can you {action} {subject} for a beginner? Keep it short.",
    "Is {part} important when I {action} {subject}?",
    "What should I know about {subject} before I {action} it?",
    "Tell me one reason why {part} matters for {subject}.",
)
CODE_QUESTIONS = (
    "What does {name} do in Python?",
    "When should I use {name}?",
    "Show a short example of {name}.",
    "How is {name} called, and what does it return?",
)
TASKS = (
    "I want to {action} {subject}. Please write a plan with four steps and mention {part}.",
    "Here is my note about {subject}: it is {quality} and I worry about {problem}. Rewrite it as a friendly letter.",
    "Make a table with two columns about {subject}: what to check, and how it should be. Include {part}.",
    "Summarise for a colleague why {subject} can be {quality}, then list what could go wrong with {part}.",
    "Let us debug my attempt to {action} {subject}: {part} turned out {quality}. What do I try first?",
    "Write a short story in which someone has to {action} {subject} and {part} plays a role.",
)
FOLLOW_UPS = (
    "Good. Now make it shorter and say more about {part}.",
    "I tried that, but it became {quality}. What next?",
    "Why? Explain it step by step.",
    "Please add a warning about {problem}.",
    "Thanks. Turn the answer into a list.",
    "And what changes if {reason}?",
)
STATEMENTS = (
    "Start with {part} and look closely: it should be {quality}.",
    "If {part} is {quality}, you can {action} {subject} at once.",
    "This works because {reason}.",
    "Most people forget {part}, although {reason}.",
    "With {part} it is possible to {action} {subject} without {problem}.",
    "Remember that {reason}, so take your time.",
    "{subject} is often {quality} at first; that is normal.",
    "Do not worry about {problem}: {part} helps more than you think.",
    "After a while {subject} becomes {quality}.",
    "The simple answer is to {action} {subject} early, since {reason}.",
)
OPENINGS = (
    "Yes, gladly.",
    "That is a good question.",
    "Of course.",
    "In short:",
    "It depends, but here is what helps.",
    "Certainly.",
)


@cache
def topics() -> dict[str, Topic]:
    """Vocabulary by topic, from `data/corpus/topics.json`."""
    return json.loads((DATA / "corpus" / "topics.json").read_text(encoding="utf-8"))


def redraw(scene: dict[str, str], random: Random) -> dict[str, str]:
    """The same topic and subject with other details, for the next sentence."""
    other = draw_scene_of(scene["topic"], random)
    return {**other, "subject": scene["subject"]}


def draw_scene_of(topic: str, random: Random) -> dict[str, str]:
    """One word of every kind from the given topic."""
    return {"topic": topic, **{KINDS[kind]: random.choice(entries) for kind, entries in topics()[topic].items()}}


def question(random: Random) -> tuple[str, dict[str, str]]:
    """A short question and its scene; one in five is about the standard library."""
    if random.random() < 0.2:
        name = random.choice(STDLIB)
        return random.choice(CODE_QUESTIONS).format(name=name), {"topic": "python", "name": name}
    scene = draw_scene_of(random.choice(sorted(topics())), random)
    return random.choice(QUESTIONS).format(**scene), scene


def answer(scene: dict[str, str], random: Random, sentences: int) -> str:
    """An answer of about `sentences` sentences on the scene's topic."""
    if scene["topic"] == "python":
        return code_answer(scene["name"], random)
    lines = [capitalised(random.choice(STATEMENTS).format(**redraw(scene, random))) for _ in range(sentences)]
    style = random.random()
    if style < 0.25:
        return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))
    if style < 0.35:
        return "\n".join(f"- {line}" for line in lines)
    return " ".join([random.choice(OPENINGS), *lines])


def code_answer(name: str, random: Random) -> str:
    """An explanation of a standard library name, from the running interpreter's documentation, with a line of code."""
    module, _, attribute = name.rpartition(".")
    value = random.choice(["data", "items", "values", "text", "path"])
    call = f"import {module}\n\nresult = {name}({value})\nprint(result)"
    summary = summary_of(module, attribute)
    return f"{name} is part of the module {module}. {summary}\n\n{call}"


@cache
def summary_of(module: str, attribute: str) -> str:
    """First line of an object's documentation in the running interpreter."""
    from importlib import import_module
    from inspect import getdoc

    text = getdoc(getattr(import_module(module), attribute, None)) or "See its documentation."
    return text.strip().splitlines()[0]


def dialogue_prompt(random: Random) -> tuple[str, dict[str, str]]:
    """A task with one completed turn, and a follow-up that has no answer yet."""
    scene = draw_scene_of(random.choice(sorted(topics())), random)
    opening = random.choice(TASKS).format(**scene)
    if random.random() < 0.3:
        return opening, scene
    first = answer(scene, random, 1)
    return f"{opening}\nAssistant: {first}\nUser: {random.choice(FOLLOW_UPS).format(**redraw(scene, random))}", scene


def conversation(random: Random, genre: str) -> str:
    """A complete exchange of one genre, prompt and answer, as training text."""
    prompt, scene = question(random) if genre == "questions" else dialogue_prompt(random)
    reply = answer(scene, random, random.randint(2, 4) if genre == "questions" else random.randint(4, 7))
    return f"{as_prompt(prompt)} {reply}"


def as_prompt(text: str) -> str:
    """A prompt in the form in which a miniature receives it."""
    return f"User: {text}\nAssistant:"


def capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
