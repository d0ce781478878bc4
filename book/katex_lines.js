// One formula per line on stdin, its HTML per line on stdout; ends with stdin.
const katex = require(process.argv[2]);
const lines = require("readline").createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const { latex, display, output } = JSON.parse(line);
  let answer;
  try {
    const options = {
      displayMode: display,
      output: output ?? "htmlAndMathml",
      throwOnError: true,
      strict: false,
    };
    answer = { html: katex.renderToString(latex, options) };
  } catch (error) {
    answer = { error: String(error.message) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
});
