"""Captions of the embedded photographs, written for this project."""

from __future__ import annotations

CAPTIONS: dict[str, tuple[str, ...]] = {
    "astronaut": (
        "A smiling woman in an orange space suit sits in front of a flag.",
        "An astronaut with short blond hair holds her white helmet.",
        "A portrait of a woman in a space suit, with a model of a rocket behind her.",
    ),
    "brick": (
        "Rows of grey bricks with light mortar between them.",
        "A wall of narrow bricks in black and white.",
        "A close view of a brick wall.",
    ),
    "camera": (
        "A man in a dark coat looks through a camera on a tripod.",
        "A photographer bends to his camera on a wide lawn.",
        "A black and white picture of a man who films outdoors.",
    ),
    "chelsea": (
        "The face of a striped cat with green eyes.",
        "A close view of a ginger cat that looks to the side.",
        "A tabby cat with long whiskers lies on a bed.",
    ),
    "china": (
        "A tall red and green tower stands on a wooded hill above a lake.",
        "A Chinese pagoda with curved roofs behind green trees.",
        "An old temple of several floors, with water in the distance.",
    ),
    "coffee": (
        "A cup of coffee on a red saucer with a spoon.",
        "A small espresso stands on a wooden table.",
        "A red and white cup, half full of coffee, seen from above.",
    ),
    "coins": (
        "Four rows of old coins on a dark ground.",
        "Many ancient coins with worn faces in black and white.",
        "Round silver coins of different sizes lie side by side.",
    ),
    "flower": (
        "An orange dahlia in full bloom before dark green leaves.",
        "A round flower with many pale orange petals.",
        "A single blossom stands out against a blurred garden.",
    ),
    "grass": (
        "Dry blades of grass in black and white.",
        "A patch of grass seen from above.",
        "Tangled stalks and leaves of a meadow.",
    ),
    "gravel": (
        "Small grey stones cover the ground.",
        "A bed of gravel in black and white.",
        "A close view of crushed stones.",
    ),
    "hubble_deep_field": (
        "Hundreds of distant galaxies on a black sky.",
        "Small red, blue and yellow lights are spread over deep space.",
        "A picture of many stars and galaxies from a space telescope.",
    ),
    "ihc": (
        "Brown stained cells with blue nuclei under a microscope.",
        "A slice of tissue dyed in brown and blue.",
        "A microscope picture of glands in a colon.",
    ),
    "retina": (
        "A red disc with thin blood vessels on a black ground.",
        "The back of an eye, with a bright spot where the vessels meet.",
        "A medical picture of the retina of an eye.",
    ),
    "rocket": (
        "A white rocket stands on its launch pad at dusk.",
        "A tall rocket between steel towers under a dark blue sky.",
        "Bright lamps shine on a rocket before its launch.",
    ),
}
