// Where a question is put together: words, and images that are dropped, pasted, chosen or taken.

import { imageFiles, LONGEST_SIDE, readImage } from "./images.js";
import { longestSide } from "./limits.js";
import { make } from "./text.js";

const at = (id) => document.getElementById(id);
const TALLEST = 220; // pixels

/**
 * The form; `tell(sentence)` is for mistakes, `problem(text, images)` says what the server would
 * refuse, and `onSend(text, images)` is for questions.
 */
export class Composer {
  constructor({ tell, problem, onSend }) {
    this.problem = problem;
    this.limits = null;
    this.tell = tell;
    this.onSend = onSend;
    this.images = [];
    this.reading = 0;
    this.isBusy = false;
    this.field = at("question");
    this.listen();
    this.renew();
  }

  listen() {
    this.field.addEventListener("input", () => this.renew());
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    at("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    for (const [button, input] of [["choose", "files"], ["photograph", "camera"]]) {
      at(button).addEventListener("click", () => at(input).click());
      at(input).addEventListener("change", (event) => {
        this.add(imageFiles(event.target.files), event.target.files.length);
        event.target.value = ""; // so that the same file can be chosen again
      });
    }
    document.addEventListener("paste", (event) => {
      const files = imageFiles(event.clipboardData?.files);
      if (!files.length) return;
      event.preventDefault();
      this.add(files, files.length);
    });
    this.listenToDrops();
  }

  listenToDrops() {
    const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      at("drop").hidden = false;
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) at("drop").hidden = true;
    });
    document.addEventListener("drop", (event) => {
      at("drop").hidden = true;
      if (!holdsFiles(event)) return;
      event.preventDefault();
      this.add(imageFiles(event.dataTransfer.files), event.dataTransfer.files.length);
    });
  }

  /** Take images in; `given` files were offered, some of which may be no images. */
  async add(files, given) {
    if (this.limits && !this.limits.images) {
      this.tell("This model reads text alone: it takes no images.");
      return;
    }
    this.tell(files.length < given ? "Only images can be added." : "");
    this.reading += 1;
    this.renew();
    for (const file of files) {
      try {
        this.images.push(await readImage(file, longestSide(this.limits, LONGEST_SIDE)));
      } catch (error) {
        this.tell(error.message);
      }
    }
    this.reading -= 1;
    const problem = this.problem(this.field.value, this.images);
    if (problem) this.tell(problem);
    this.renew();
    this.field.focus();
  }

  /** Put a question in, to be changed. */
  fill(text, images) {
    this.field.value = text;
    this.images = [...images];
    this.renew();
    this.field.focus();
  }

  /** Learn what the server takes; a model without sight gets no image buttons. */
  setLimits(limits) {
    this.limits = limits;
    for (const id of ["choose", "photograph"]) at(id).hidden = !limits.images;
  }

  setBusy(isBusy) {
    this.isBusy = isBusy;
    this.renew();
  }

  send() {
    const text = this.field.value.trim();
    if (this.isBusy || this.reading || (!text && !this.images.length)) return;
    const problem = this.problem(text, this.images);
    if (problem) {
      this.tell(problem);
      return;
    }
    const images = this.images;
    this.fill("", []);
    this.onSend(text, images);
  }

  renew() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, TALLEST)}px`;
    at("send").hidden = this.isBusy;
    at("stop").hidden = !this.isBusy;
    at("send").disabled = Boolean(this.reading) || !(this.field.value.trim() || this.images.length);
    at("attached").replaceChildren(...this.images.map((image, index) => this.thumbnail(image, index)));
  }

  thumbnail(image, index) {
    const remove = () => {
      this.images.splice(index, 1);
      this.renew();
      this.field.focus();
    };
    return make("li", {},
      make("img", { src: image, alt: `Image ${index + 1} to send` }),
      make("button", { type: "button", "aria-label": `Remove image ${index + 1}`, onclick: remove }, "×"));
  }
}
