import { SerialBatcher } from './serial-batcher';

/** Batches that are answered when the test says so. */
function gather() {
  const batches: { requests: readonly number[]; answer: PromiseWithResolvers<number[]> }[] = [];
  const calls = new SerialBatcher<number, number>((requests) => {
    const answer = Promise.withResolvers<number[]>();
    batches.push({ requests, answer });
    return answer.promise;
  });
  const sent = () => batches.map(({ requests }) => requests);
  const answer = async (i: number) => {
    batches[i]?.answer.resolve(batches[i].requests.map((request) => request * 10));
    await new Promise(setImmediate);
  };
  const refuse = (i: number, error: Error) => batches[i]?.answer.reject(error);
  return { calls, sent, answer, refuse };
}

describe('SerialBatcher', () => {
  it('sends the first at once, and all that come meanwhile together, in their order', async () => {
    const { calls, sent, answer } = gather();
    const answers = [1, 2, 3].map((request) => calls.run(request));
    expect(sent()).toEqual([[1]]);
    await answer(0);
    answers.push(calls.run(4));
    expect(sent()).toEqual([[1], [2, 3]]);
    await answer(1);
    expect(sent()).toEqual([[1], [2, 3], [4]]);
    await answer(2);
    expect(await Promise.all(answers)).toEqual([10, 20, 30, 40]);
  });

  it('does not wait for a batch that is done', async () => {
    const { calls, sent, answer } = gather();
    const first = calls.run(1);
    await answer(0);
    await first;
    void calls.run(2);
    expect(sent()).toEqual([[1], [2]]);
  });

  it('fails those in the batch and those behind it, and goes on with the next', async () => {
    const { calls, sent, answer, refuse } = gather();
    const failing = [1, 2].map((request) => calls.run(request));
    refuse(0, new Error('away'));
    for (const outcome of await Promise.allSettled(failing))
      expect(outcome).toMatchObject({ status: 'rejected', reason: { message: 'away' } });
    const next = calls.run(3);
    expect(sent()).toEqual([[1], [3]]);
    await answer(1);
    expect(await next).toBe(30);
  });

  it('fails where sending throws before it waits', async () => {
    const calls = new SerialBatcher<number, number>(() => {
      throw new Error('at once');
    });
    await expect(calls.run(1)).rejects.toThrow('at once');
    await expect(calls.run(2)).rejects.toThrow('at once');
  });
});
