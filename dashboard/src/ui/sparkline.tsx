/** A small graph of the last two minutes. */

const WIDTH = 100;
const HEIGHT = 28;

/** Room for the line's own width at top and bottom. */
const MARGIN = 1.5;

interface SparklineProps {
  values: readonly number[];
  /** Samples that the whole width stands for. */
  room: number;
  /** What the top stands for; larger values raise it. */
  top: number;
  label: string;
}

export function Sparkline({ values, room, top, label }: SparklineProps) {
  const most = Math.max(top, ...values, Number.MIN_VALUE);
  const x = (index: number): string => (WIDTH - ((values.length - 1 - index) * WIDTH) / (room - 1)).toFixed(1);
  const y = (value: number): string => (HEIGHT - MARGIN - (value / most) * (HEIGHT - 2 * MARGIN)).toFixed(1);
  const points = values.map((value, index) => `${x(index)},${y(value)}`);
  const area = points.length > 1 ? `M${x(0)},${HEIGHT} L${points.join(" L")} L${WIDTH},${HEIGHT}Z` : "";
  return (
    <svg class="sparkline" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={label}>
      <path class="sparkline-ground" d={`M0,${HEIGHT - 0.5}H${WIDTH}`} />
      {area !== "" && <path class="sparkline-area" d={area} />}
      {area !== "" && <polyline class="sparkline-line" points={points.join(" ")} />}
    </svg>
  );
}
