//! Distance on the globe between two points given in degrees.

use kymo_udf::{Error, plugin, scalar};

/// Mean radius of the earth in metres (IUGG).
const EARTH: f64 = 6_371_008.8;

/// Metres between two points by the haversine formula; latitudes and longitudes in degrees.
/// Off by up to 0.5 %, as the earth is no sphere.
///
/// `haversine(lat1, lon1, lat2, lon2)`
#[scalar]
fn haversine(lat1: f64, lon1: f64, lat2: f64, lon2: f64) -> Result<f64, Error> {
    for latitude in [lat1, lat2] {
        if latitude.abs() > 90.0 {
            return Err(Error::invalid(format!("a latitude of {latitude} degrees")));
        }
    }
    let (from, to) = (lat1.to_radians(), lat2.to_radians());
    let across = ((lon2 - lon1).to_radians() / 2.0).sin();
    let along = ((to - from) / 2.0).sin();
    let half_chord = along * along + from.cos() * to.cos() * across * across;
    Ok(2.0 * EARTH * half_chord.sqrt().min(1.0).asin())
}

plugin! {
    name: "geo",
    description: "Distance on the globe",
    scalars: [haversine],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_distances() {
        let quarter = std::f64::consts::FRAC_PI_2 * EARTH;
        let near = |a: f64, b: f64| (a - b).abs() < 1e-3;
        assert!(near(haversine(0.0, 0.0, 90.0, 0.0).unwrap(), quarter));
        assert!(near(haversine(0.0, 179.0, 0.0, -91.0).unwrap(), quarter));
        assert!(near(haversine(0.0, 0.0, 0.0, 180.0).unwrap(), 2.0 * quarter));
        // Berlin to Paris
        let berlin = haversine(52.5200, 13.4050, 48.8566, 2.3522).unwrap();
        assert!((berlin - 877_463.0).abs() < 1_000.0, "{berlin}");
    }

    #[test]
    fn no_such_latitude() {
        assert!(haversine(91.0, 0.0, 0.0, 0.0).unwrap_err().message.contains("91"));
    }
}
