"""What sounds are called: several names for each family, and for each of its variants. Light: no imports of ours."""

from __future__ import annotations

FAMILY_NOUNS: dict[str, tuple[str, ...]] = {
    "pluck": ("plucked string", "pluck", "string pluck", "picked string"),
    "bowed string": ("bowed string", "bowed string note", "string instrument played with a bow", "sustained string"),
    "bell": ("bell", "bell tone", "struck bell", "bell hit", "chime"),
    "mallet": ("mallet note", "mallet percussion", "struck bar", "mallet hit"),
    "kick": ("kick", "kick drum", "bass drum", "kick drum hit", "bass drum hit"),
    "snare": ("snare", "snare drum", "snare hit", "snare drum hit"),
    "hat": ("hi-hat", "hihat", "hat", "hi-hat hit"),
    "tom": ("tom", "tom drum", "tom-tom", "tom hit"),
    "clap": ("clap", "hand clap", "handclap", "clap sample"),
    "cymbal": ("cymbal", "cymbal hit", "cymbal strike"),
    "drum loop": ("drum loop", "drum beat", "beat", "drum pattern", "drum groove", "percussion loop"),
    "bass": ("bass", "bass note", "synth bass", "bassline note"),
    "lead": ("lead", "synth lead", "lead synth", "lead tone", "synthesizer lead"),
    "pad": ("pad", "synth pad", "pad chord", "ambient pad", "sustained pad"),
    "chord": ("chord", "chord hit", "single chord"),
    "arpeggio": ("arpeggio", "arpeggiated chord", "arp", "broken chord"),
    "vowel": ("voice", "sung vowel", "choir voice", "vocal tone", "singing voice"),
    "wind instrument": ("wind instrument", "wind instrument note", "blown note"),
    "sweep": ("sweep", "sweep effect", "sweeping sound", "transition effect"),
    "noise": ("noise", "noise texture", "steady noise"),
    "wind": ("wind", "wind sound", "wind ambience", "blowing wind"),
    "rain": ("rain", "rain sound", "rainfall", "rain ambience"),
    "fire": ("fire", "crackling fire", "fireplace", "campfire crackle", "burning fire"),
    "waves": ("waves", "ocean waves", "sea waves", "surf", "waves on a beach"),
    "engine": ("engine", "motor", "engine sound", "car engine"),
}

VARIANT_NOUNS: dict[tuple[str, str], tuple[str, ...]] = {
    **{("pluck", name): (f"{name} pluck", f"plucked {name}", f"{name} string", f"{name} note", name)
       for name in ("guitar", "harp", "banjo", "zither")},
    **{("bowed string", name): (name, f"bowed {name}", f"{name} note", f"{name} tone", f"solo {name}")
       for name in ("violin", "viola", "cello", "double bass")},
    **{("bell", name): (name, f"{name} note", f"{name} tone")
       for name in ("church bell", "tubular bell", "glockenspiel", "music box")},
    **{("mallet", name): (name, f"{name} note", f"{name} hit", f"struck {name}")
       for name in ("marimba", "xylophone", "vibraphone", "kalimba")},
    ("hat", "open"): ("open hi-hat", "open hat", "open hihat"),
    ("hat", "closed"): ("closed hi-hat", "closed hat", "closed hihat"),
    ("tom", "low"): ("low tom", "floor tom"),
    ("tom", "mid"): ("mid tom", "middle tom"),
    ("tom", "high"): ("high tom", "rack tom"),
    **{("cymbal", name): (f"{name} cymbal", name, f"{name} cymbal hit")
       for name in ("crash", "ride", "splash", "china")},
    **{("drum loop", name): (f"{name} drum loop", f"{name} drum beat", f"{name} drums", f"{name} groove")
       for name in ("four on the floor", "breakbeat", "half time", "boom bap", "techno", "dembow", "drum and bass",
                    "trap", "disco", "tribal")},
    ("drum loop", "rock beat"): ("rock drum loop", "rock beat", "rock drums"),
    ("drum loop", "train beat"): ("train beat", "train beat drum loop", "rolling snare drum loop"),
    ("bass", "sub"): ("sub bass", "sub bass note", "sine bass"),
    ("bass", "saw"): ("saw bass", "sawtooth bass", "saw synth bass"),
    ("bass", "square"): ("square bass", "square wave bass", "hollow synth bass"),
    ("bass", "wobble"): ("wobble bass", "dubstep wobble bass", "wobbling bass"),
    ("bass", "plucked"): ("plucked bass", "pluck bass", "plucky synth bass"),
    ("lead", "saw"): ("saw lead", "sawtooth lead", "saw synth lead"),
    ("lead", "square"): ("square lead", "square wave lead", "chiptune square lead"),
    ("lead", "sine"): ("sine lead", "sine wave lead", "pure sine tone lead"),
    ("lead", "detuned"): ("detuned lead", "detuned saw lead", "detuned synth lead"),
    ("chord", "organ"): ("organ chord", "chord on an organ"),
    ("chord", "electric piano"): ("electric piano chord", "e-piano chord", "chord on an electric piano"),
    ("chord", "strummed strings"): ("strummed chord", "strummed guitar chord", "strummed string chord"),
    ("chord", "synth stab"): ("synth stab", "chord stab", "synth chord stab"),
    ("arpeggio", "plucked"): ("plucked arpeggio", "arpeggio of plucked strings", "pluck arp"),
    ("arpeggio", "music box"): ("music box arpeggio", "arpeggio on a music box", "music box arp"),
    ("arpeggio", "synth"): ("synth arpeggio", "synth arp", "synthesizer arpeggio"),
    **{("vowel", name): (f"voice singing {name}", f"{name} vowel", f"choir {name}", f"sung {name}")
       for name in ("ah", "eh", "ee", "oh", "oo")},
    **{("wind instrument", name): (name, f"{name} note", f"{name} tone", f"solo {name}")
       for name in ("flute", "clarinet", "trumpet", "trombone")},
    ("sweep", "sine"): ("sine sweep", "sine wave sweep", "pure tone sweep"),
    ("sweep", "sawtooth"): ("saw sweep", "sawtooth sweep", "synth sweep"),
    ("sweep", "noise"): ("noise sweep", "filtered noise sweep", "white noise sweep"),
    ("noise", "white noise"): ("white noise", "white noise texture", "static"),
    ("noise", "pink noise"): ("pink noise", "pink noise texture"),
    ("noise", "brown noise"): ("brown noise", "brown noise texture", "red noise"),
    ("noise", "hiss"): ("hiss", "high hiss", "tape hiss"),
    ("noise", "rumble"): ("rumble", "low rumble", "deep rumble"),
    ("wind", "breeze"): ("breeze", "light breeze", "gentle wind"),
    ("wind", "wind"): ("wind", "gusty wind", "blowing wind"),
    ("wind", "howling wind"): ("howling wind", "whistling wind"),
    ("rain", "light rain"): ("light rain", "drizzle", "sparse rain drops"),
    ("rain", "rain"): ("rain", "steady rain", "rainfall"),
    ("rain", "heavy rain"): ("heavy rain", "downpour", "pouring rain"),
    ("engine", "idling"): ("idling engine", "engine idling", "motor idling"),
    ("engine", "running"): ("running engine", "engine running", "running motor"),
    ("engine", "revving up"): ("engine revving up", "accelerating engine", "motor speeding up"),
    ("engine", "slowing down"): ("engine slowing down", "decelerating engine", "motor winding down"),
}  # fmt: skip
"""Names that say the variant; a variant without names here is told by none."""
