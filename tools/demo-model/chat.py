"""ChatML text to token ids, the way the model is trained and has to be served."""
import sentencepiece

BOS = 1


def render(messages, generation_prompt=True):
    """The text that the chat template makes, without the BOS."""
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return text + ("<|im_start|>assistant\n" if generation_prompt else "")


class Tokenizer:
    def __init__(self, path):
        self.sp = sentencepiece.SentencePieceProcessor(model_file=path)
        self.end = self.sp.piece_to_id("<|im_end|>")
        self.vocab = self.sp.get_piece_size()

    def encode(self, rendered):
        """Ids of rendered text. It starts with <|im_start|>, so the dummy prefix that the
        SentencePiece model puts in front of all text is one piece of its own: left out."""
        ids = self.sp.encode("<|im_start|>" + rendered)
        return ids[2:]

    def prompt(self, messages):
        return [BOS] + self.encode(render(messages))

    def conversation(self, system, turns):
        """Ids of a whole conversation, and for each id whether it is part of an answer."""
        ids, answer = [BOS], [False]
        before = render([("system", system)], False) if system else ""
        for question, reply in turns:
            head = self.encode(before + render([("user", question)]))
            body = self.encode(reply + "<|im_end|>")
            ids += head + body
            answer += [False] * len(head) + [True] * len(body)
            before = "\n"
        return ids, answer

    def decode(self, ids):
        return self.sp.decode(ids)
