import { LogOutput, type Sink } from './log-output';

/** An output that a test breaks and repairs. */
class TestSink implements Sink {
  readonly blocks = true;
  text = '';
  error: string | undefined;
  stalled = false;
  /** The most bytes that one write takes. */
  room = Number.POSITIVE_INFINITY;

  write(bytes: Buffer, done: Parameters<Sink['write']>[1]): void {
    if (this.stalled) return;
    setImmediate(() => {
      if (this.error) return done(Object.assign(new Error(), { code: this.error }), 0);
      const taken = bytes.subarray(0, this.room);
      this.text += taken;
      done(null, taken.length);
    });
  }

  get lines(): string[] {
    return this.text.split('\n').filter(Boolean);
  }
}

const flush = (output: LogOutput) => new Promise<void>((resolve) => output.flush(() => resolve()));

describe("the log's output", () => {
  it('writes lines whole and in order, though the output takes a few bytes at a time', async () => {
    const sink = new TestSink();
    sink.room = 7;
    const output = new LogOutput(sink);
    const lines = Array.from({ length: 50 }, (_, i) => `line ${i} ✓`);
    for (const line of lines) output.write(`${line}\n`);
    await flush(output);
    // A character may be cut between two writes, but not lost.
    expect(Buffer.byteLength(sink.text)).toBeGreaterThan(0);
    sink.room = Number.POSITIVE_INFINITY;
    expect(sink.lines.length).toBe(50);
    expect(sink.lines.at(-1)).toContain('line 49');
  });

  it.each(['ENOSPC', 'EPIPE', 'EIO'])(
    'outlives %s: keeps what fits, drops the rest, and says how much',
    async (code) => {
      const sink = new TestSink();
      sink.error = code;
      const output = new LogOutput(sink, 1_000);
      for (let i = 0; i < 100; i++) output.write(`${String(i).padStart(99, '0')}\n`);
      await flush(output);
      expect([sink.text, output.hangs]).toEqual(['', false]);
      sink.error = undefined;
      await flush(output);
      expect(sink.lines.slice(0, 10).map(Number)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
      expect(sink.lines.slice(10).map((line) => JSON.parse(line))).toMatchObject([
        { level: 'warn', dropped: 90 },
      ]);
    },
  );

  it('does not wait for a reader that stalls', async () => {
    const sink = new TestSink();
    sink.stalled = true;
    const output = new LogOutput(sink, 1_000);
    for (let i = 0; i < 100; i++) output.write(`${'x'.repeat(99)}\n`);
    await flush(output);
    expect(output.hangs).toBe(true);
  });

  it('flushes what there is, or nothing, at once', async () => {
    const sink = new TestSink();
    const output = new LogOutput(sink);
    await flush(output);
    output.write('a line\n');
    await flush(output);
    expect(sink.text).toBe('a line\n');
  });
});
