import { SteadyClock } from './clock';

describe('the clock of the process', () => {
  let wall: number;
  let monotonic: number;
  let clock: SteadyClock;

  beforeEach(() => {
    wall = 1_000_000;
    monotonic = 500;
    jest.spyOn(Date, 'now').mockImplementation(() => wall);
    jest.spyOn(performance, 'now').mockImplementation(() => monotonic);
    clock = new SteadyClock();
  });
  afterEach(() => {
    jest.restoreAllMocks();
  });

  const pass = (ms: number): void => {
    wall += ms;
    monotonic += ms;
  };

  it('follows the clock of the machine, forwards too', () => {
    expect(clock.now()).toBe(1_000_000);
    pass(250);
    expect(clock.now()).toBe(1_000_250);
    wall += 3_600_000;
    expect(clock.now()).toBe(4_600_250);
  });

  it('goes on by the time that passes if the clock of the machine is set back, until that has caught up', () => {
    expect(clock.now()).toBe(1_000_000);
    wall -= 3_600_000;
    expect(clock.now()).toBe(1_000_000);
    pass(1_500);
    expect(clock.now()).toBe(1_001_500);
    wall += 3_600_000;
    pass(1);
    expect(clock.now()).toBe(1_001_501);
    wall += 10;
    expect(clock.now()).toBe(1_001_511);
  });
});
