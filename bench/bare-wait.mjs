// The measure of what a request that waits costs Node alone: an HTTP server that reads each POST and never answers it, and answers
// all else at once. The benchmark starts it as a process of its own.
import { createServer } from 'node:http';

const waiting = [];
const read = (request, done) => request.on('data', () => undefined).on('end', done);

createServer((request, response) => {
  if (request.url === '/claim') read(request, () => waiting.push(response));
  else read(request, () => response.writeHead(200, { 'content-length': 2 }).end('{}'));
}).listen(Number(process.argv[2]), '127.0.0.1');
