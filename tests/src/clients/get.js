const http = require("node:http");

http.get(process.argv[2], { timeout: 15000 }, (response) => {
  console.log(response.statusCode);
  response.pipe(process.stdout);
}).on("error", (error) => {
  console.error(error.message);
  process.exitCode = 1;
});
