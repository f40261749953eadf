// A DNS server in a thread of its own, so that what its clients do does not delay the instants of arrivals. See dns-sink.ts.
import { createSocket } from 'node:dgram';
import { parentPort, workerData } from 'node:worker_threads';
import { Packet } from 'dns2';

const sockets = [];
const arrivals = [];
/** Queries that each socket answers in a second; null if all. */
const capacities = [];
const answered = [];

for (let index = 0; index < workerData.ports; index++) {
  const socket = createSocket('udp4');
  capacities.push(null);
  answered.push([]);
  socket.on('message', (message, { port, address }) => {
    const at = Date.now();
    const request = Packet.parse(message);
    const name = request.questions[0]?.name;
    arrivals.push({ index, at, name });
    const recent = answered[index].filter((then) => then > at - 1_000);
    answered[index] = recent;
    if (capacities[index] !== null && recent.length >= capacities[index]) return;
    recent.push(at);
    const response = Packet.createResponseFromRequest(request);
    const { A: type } = Packet.TYPE;
    response.answers.push({ name, type, class: Packet.CLASS.IN, ttl: 60, address: '192.0.2.7' });
    socket.send(response.toBuffer(), port, address);
  });
  await new Promise((done) => socket.bind(0, '127.0.0.1', done));
  sockets.push(socket);
}

parentPort.on('message', ({ capacity, index, reads }) => {
  if (index !== undefined) capacities[index] = capacity;
  if (reads) parentPort.postMessage(arrivals);
});
parentPort.postMessage(sockets.map((socket) => socket.address().port));
