// What the server takes, said before something is sent.

const MEBI = 2 ** 20;

/** Say in a few words what may be sent. */
export function told(limits) {
  const words = [];
  if (!limits.images) words.push("This model reads text, no images.");
  else words.push(`Up to ${count(limits.max_images, "image")} a conversation.`);
  if (limits.window) words.push(`It remembers ${limits.window.toLocaleString()} tokens (word pieces).`);
  return words.join(" ");
}

/**
 * Find what the server would refuse of a question; empty where it takes it.
 *
 * @param earlier the turns before, which are sent again.
 */
export function problem(limits, earlier, text, images) {
  if (!limits) return "";
  if (images.length && !limits.images) return "This model reads text alone: remove the images.";
  const all = [...earlier.flatMap((turn) => turn.images), ...images];
  if (all.length > limits.max_images) {
    return `This server takes ${count(limits.max_images, "image")} a conversation, and this would be ` +
      `${all.length}: remove some, or begin a new conversation.`;
  }
  const texts = earlier.flatMap((turn) => [turn.text, turn.answers.adapted?.text ?? ""]);
  const characters = [...texts, text].reduce((sum, one) => sum + one.length, 0);
  if (characters > limits.max_text_chars) {
    return `This server takes ${limits.max_text_chars.toLocaleString()} characters of text: shorten the question.`;
  }
  const bytes = all.reduce((sum, image) => sum + image.length, characters);
  if (bytes > limits.max_body_mib * MEBI) {
    return `This server takes ${limits.max_body_mib} MiB at a time: remove images, or begin a new conversation.`;
  }
  const usage = earlier.at(-1)?.answers.adapted?.usage;
  const held = usage ? usage.prompt_tokens + usage.completion_tokens : 0;
  if (limits.window && held >= limits.window) {
    return `The conversation fills the ${limits.window.toLocaleString()} tokens that the model remembers: ` +
      "begin a new one.";
  }
  return "";
}

/** The longest side that an image may have, in pixels, where all sides are at most `most`. */
export function longestSide(limits, most) {
  return limits ? Math.max(1, Math.min(most, Math.floor(Math.sqrt(limits.max_image_mpixels * 1e6)))) : most;
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
