import fc from 'fast-check';
import { shareOut } from './claim-shares';

const demand = (kind: string, asked: number, available = Number.MAX_SAFE_INTEGER) => ({
  kind,
  asked,
  available,
});

describe('the kinds of a claim', () => {
  it('share what it may have in proportion to what was asked', () => {
    expect(shareOut([demand('dns', 300), demand('http', 100)], 256)).toEqual(
      new Map([
        ['dns', 192],
        ['http', 64],
      ]),
    );
  });

  it('get what another has no tasks for', () => {
    expect(shareOut([demand('dns', 200), demand('http', 200, 10)], 256)).toEqual(
      new Map([
        ['dns', 200],
        ['http', 10],
      ]),
    );
  });

  it('get all that there is room for and never more than was asked, is there, or may be had', () => {
    const demands = fc.uniqueArray(
      fc.record({ kind: fc.string(), asked: fc.nat(1_000_000), available: fc.nat(300) }),
      { selector: ({ kind }) => kind, maxLength: 8 },
    );
    fc.assert(
      fc.property(demands, fc.nat(256), (all, limit) => {
        const shares = shareOut(all, limit);
        let sum = 0;
        let possible = 0;
        for (const { kind, asked, available } of all) {
          const share = shares.get(kind) as number;
          expect(share).toBeLessThanOrEqual(Math.min(asked, available));
          sum += share;
          possible += Math.min(asked, available);
        }
        expect(sum).toBe(Math.min(limit, possible));
      }),
    );
  });
});
