// Serves a GGUF file as llama.cpp's own server does, as far as `varifocal export --verify` asks it:
// `node llama_server.cjs PORT_FILE MODEL [MMPROJ]`. The npm package has no server. GET /v1/models and
// POST /v1/chat/completions, with one token and its log-probabilities. The port is written to PORT_FILE.
const fs = require("fs");
const http = require("http");
const { open, NEUTRAL } = require("./llama_node.cjs");

const [portFile, model, mmproj] = process.argv.slice(2);

// Parts as llama.cpp's server hands them to the template: without a newline around an image, which the
// package's own function for chats sets (findings/llama-node-newline-after-an-image.sh).
function asked(messages) {
  const images = [];
  const turns = messages.map((message) => ({
    ...message,
    content: typeof message.content === "string" ? message.content : message.content.map((part) => {
      if (part.type !== "image_url") return part;
      images.push(part.image_url.url);
      return { type: "media_marker", text: "<__media__>" };
    }),
  }));
  return { turns, images };
}

async function answer({ context, complete }, body) {
  const { turns, images } = asked(body.messages);
  const { prompt } = await context.getFormattedChat(turns, undefined, { jinja: true });
  const shown = images.length ? { media_paths: images } : {};
  const { steps: [first] } = await complete({ prompt, ...shown, ...NEUTRAL, n_predict: 1 });
  const best = first.probs.sort((a, b) => b.prob - a.prob).slice(0, body.top_logprobs);
  const entries = best.map((one) => ({ token: one.tok_str, logprob: Math.log(one.prob) }));
  const content = [{ token: first.content, top_logprobs: entries }];
  const message = { role: "assistant", content: first.content };
  return { choices: [{ index: 0, message, finish_reason: "length", logprobs: { content } }] };
}

(async () => {
  const served = await open({ model, mmproj, size: 2048 });
  const server = http.createServer(async (request, response) => {
    let text = "";
    for await (const piece of request) text += piece;
    const reply = request.method === "GET" ? { data: [{ id: "gguf" }] } : await answer(served, JSON.parse(text));
    response.setHeader("Content-Type", "application/json").end(JSON.stringify(reply));
  });
  server.listen(0, "127.0.0.1", () => fs.writeFileSync(portFile, `${server.address().port}\n`));
})();
